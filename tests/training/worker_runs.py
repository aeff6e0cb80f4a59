"""Runs of train_worker.py, in one process or on two ranks, from recipes of a test."""

import os
import subprocess
import sys
from pathlib import Path

import yaml
from two_ranks import launch

WORKER = Path(__file__).with_name("train_worker.py")
ENGINES = ("ddp", "fsdp2", "zero-1", "zero-2", "zero-3")


def words(recipe: dict, folder: Path, name: str, stop_after: int = 0, **changes) -> list[str]:
    """The worker's words for a run in ``folder``/``name``."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**recipe, **changes}))
    out = str(folder / name)
    return [str(folder / f"{name}.tokens"), str(stop_after), "train", str(file), "--out", out]


def joined(runs: list[list[str]]) -> list[str]:
    """One process makes the runs one after another."""
    return [word for run in runs for word in (*run, "//")][:-1]


def one_rank(runs: list[list[str]]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, WORKER, *joined(runs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]


def two_ranks(folder: Path, runs: list[list[str]]) -> None:
    launch(folder, WORKER, *joined(runs))
