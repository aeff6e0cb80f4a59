"""`freezetrain train`, by its command, on forked ranks; what they train on is noted."""

import hashlib
import json
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from forked_ranks import RanksError, run_ranks

from freezetrain.freezing.weights_folder import WeightsFolder

_OF_LIBRARIES = re.compile(r"(?i).*(warning|deprecated|deepspeed|lightning|global_rank|dirpath).*")

ENGINES = ("ddp", "fsdp2", "zero-1", "zero-2", "zero-3")


@dataclass(frozen=True)
class Run:
    """A run in a folder, which several commands may start and go on with."""

    folder: Path
    recipe: dict[str, Any]

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.folder / "results.json").read_text())

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / "forgetting.json").read_text())["evaluations"]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Of the exported model."""
        stored = WeightsFolder(self.folder / "model")
        return {name: stored[name] for name in stored}

    @property
    def sequences(self) -> dict[int, str]:
        """Place in the run's order -> hash of its tokens, over all starts, each place once."""
        lines = self.folder.with_suffix(".sequences").read_text().splitlines()
        pairs = [line.split() for line in lines]
        assert len({place for place, _ in pairs}) == len(pairs)
        return {int(place): digest for place, digest in pairs}


def start(
    *runs: Run, world: int, stop_in: int = 0, kill_in: int = 0, timeout: float = 250.0
) -> None:
    """Start the command of each of ``runs``, one after another, on ``world`` ranks.

    SIGTERM is sent to rank 0 in the midst of step ``stop_in``, SIGKILL in that of step ``kill_in``;
    0: never.
    """
    for run in runs:
        run.folder.with_suffix(".yaml").write_text(yaml.safe_dump(run.recipe))
    logs = runs[0].folder.with_suffix(".logs")
    folders, signals = [run.folder for run in runs], {stop_in: 15, kill_in: 9}
    options = {"world": world, "group": False, "logs": logs, "timeout": timeout}
    if kill_in:
        with pytest.raises(RanksError):
            run_ranks(_train, folders, signals, **options)
        return
    run_ranks(_train, folders, signals, **options)
    for log in logs.iterdir():
        # Tables, bars and lines of ours alone: libraries say nothing that one cannot act on.
        told = _OF_LIBRARIES.search(log.read_text(encoding="utf-8"))
        assert told is None, f"{log.name}: {told}"


def _train(rank: int, world: int, folders: list[Path], signals: dict[int, int]) -> None:
    from freezetrain.callbacks import ForgettingBoard
    from freezetrain.cli import main
    from freezetrain.training import train

    torch.set_num_threads(1)
    # Other tests look at pictures, which take longer than the training here.
    ForgettingBoard._draw = train.render_runs = lambda *_: None
    for folder in folders:
        _note_sequences(folder.with_suffix(".sequences"), signals)
        try:
            code = main(["train", str(folder.with_suffix(".yaml")), "--out", str(folder)])
        except SystemExit as stopped:
            code = stopped.code
        assert (code or 0) == (75 if max(signals) else 0), code


def _note_sequences(path: Path, signals: dict[int, int]) -> None:
    from freezetrain.training.module import CausalLM

    plain = getattr(CausalLM, "_plain", CausalLM.on_train_batch_start)
    CausalLM._plain = plain

    def on_train_batch_start(self, batch, batch_idx):
        rows = batch["input_ids"]
        first = (batch_idx * self.trainer.world_size + self.global_rank) * len(rows)
        with path.open("a") as file:
            for place, row in enumerate(rows, first):
                file.write(f"{place} {hashlib.sha256(row.cpu().numpy().tobytes()).hexdigest()}\n")
        if self.global_rank == 0 and (number := signals.get(self.global_step + 1)):
            if number == signal.SIGKILL:
                time.sleep(2.5)  # Weights & Biases writes each second
            os.kill(os.getpid(), number)
        return plain(self, batch, batch_idx)

    CausalLM.on_train_batch_start = on_train_batch_start
