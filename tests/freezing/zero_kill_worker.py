"""The runs of test_zero_kill.py: ``python zero_kill_worker.py FOLDER``.

This is the launcher: it starts two ranks, kills them with SIGKILL at the worst moments and starts
them again.
"""

import io
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from forked_workers import run_ranks, start_ranks
from frozen_reference import TinyLM
from safetensors.torch import save_file
from zero_checkpoint_cells import uneven_region
from zero_engines import build, train_steps
from zero_kill_cells import CELLS, KILLED, SAVE_EVERY, STEPS, Cell

from freezetrain.freezing import freeze

REGION = uneven_region(TinyLM())


def train(rank: int, world: int, folder: Path, cell: Cell, attempt: str) -> None:
    """From the last complete checkpoint, if there is one, to the end; or to the fatal moment."""
    engine = build(cell.engine, "fp32", world)
    complete, first = folder / "complete", 0
    if complete.exists():
        _, client = engine.load_checkpoint(folder, tag=complete.read_text())
        handle = freeze(engine, None, REGION, check_base=False, audit_every=2)
        first = client["step"]
        assert handle.digest == client["digest"]
    else:
        handle = freeze(engine, None, REGION, audit_every=2)
    for step in range(first, STEPS):
        if attempt == "killed" and rank == 1 and step == KILLED:
            die_in(cell.moment, engine, folder / "dying")
        (loss,) = train_steps(engine, rank, world, step, step + 1)
        with (folder / f"losses {attempt} {rank}").open("a", encoding="utf-8") as file:
            file.write(json.dumps([step, loss]) + "\n")
        if not (step + 1) % SAVE_EVERY:
            handle.verify()
            state = {"step": step + 1, "digest": handle.digest}
            engine.save_checkpoint(folder, f"step {step + 1}", state, save_latest=False)
            # All ranks have written by now. DeepSpeed's own "latest" is written before that.
            if not rank:
                complete.with_suffix(".new").write_text(f"step {step + 1}", encoding="utf-8")
                complete.with_suffix(".new").replace(complete)
    if not rank:
        weights = get_fp32_state_dict_from_zero_checkpoint(folder, tag=f"step {STEPS}")
        whole = {name: value.clone() for name, value in weights.items() if name != "head.weight"}
        save_file(whole, folder / "export.safetensors")


def die_in(moment: str, engine: Any, dying: Path) -> None:
    """Have this rank wait there for its SIGKILL, see ``Cell.moment``."""

    def wait(*_: Any) -> None:
        dying.touch()
        time.sleep(120)

    if moment == "backward":
        next(engine.module.parameters()).register_hook(wait)
    elif moment == "step":
        engine.optimizer.optimizer.register_step_pre_hook(wait)
    else:

        def half(content: Any, path: str, **options: Any) -> None:
            whole = io.BytesIO()
            save(content, whole, **options)
            Path(path).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
            wait()

        save = torch.save
        patch.object(torch, "save", half).start()


def kill_and_resume(folder: Path, cell: Cell) -> None:
    ranks = start_ranks(folder / "store", 2, train, folder, cell, "killed")
    deadline = time.monotonic() + 60
    while not (folder / "dying").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for rank in reversed(ranks):
        os.kill(rank, signal.SIGKILL)
        os.waitpid(rank, 0)
    if not (folder / "dying").exists():
        raise SystemExit(f"{cell}: rank 1 never came to where it is to die")
    written = sorted(path.name for path in folder.glob("step *"))
    left = {"complete": (folder / "complete").read_text(), "written": written}
    (folder / "left.json").write_text(json.dumps(left), encoding="utf-8")
    run_ranks(folder / "store again", 2, train, folder, cell, "resumed")


def main(folder: Path) -> None:
    for cell in CELLS:
        whole, here = cell.whole(folder), cell.path(folder)
        if not whole.exists():
            whole.mkdir()
            run_ranks(whole / "store", 2, train, whole, cell, "whole")
        here.mkdir()
        kill_and_resume(here, cell)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
