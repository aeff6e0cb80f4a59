"""Ranks of `freezetrain score`: ``python score_worker.py RUNS``, a JSON file of runs in order.

A run is ``{"words": of the command line, the last of which is its folder, "kill": whether rank 0
kills itself in the midst of the third language, after its snapshot, "full": whether no file can be
written, "nan": whether a loss of rank 1 is not finite}``. What a killed run left is copied to a
folder of that name and ``-as-killed``. Each rank writes a line for each language that it begins to
a file of that name and ``-RANK-languages``.
"""

import errno
import json
import os
import shutil
import signal
import sys
from pathlib import Path

# Once, for all ranks that are forked.
import deepspeed  # noqa: F401
from forked_workers import run_ranks
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

import freezetrain.analysis.score
import freezetrain.freezing.zero
from freezetrain.cli import main
from freezetrain.scoring import Scores
from freezetrain.scoring.compute import Scoring


def kill_in_the_third(folder: Path) -> None:
    add = Scoring.add

    def added(self: Scoring, batch) -> None:
        if len(list(folder.glob("*.safetensors"))) == 2 and self.sequences > 8:
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, batch)

    Scoring.add = added


def count_languages(file: Path) -> None:
    enter = Scoring.__enter__

    def entered(self: Scoring) -> Scoring:
        with file.open("a") as lines:
            lines.write("one\n")
        return enter(self)

    Scoring.__enter__ = entered


def disk_is_full(self: Scores, path: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def work(rank: int, world: int, run: dict) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = str(world)
    folder = Path(run["words"][-1])
    count_languages(folder.with_name(f"{folder.name}-{rank}-languages"))
    if run.get("kill") and rank == 0:
        kill_in_the_third(folder)
    if run.get("full"):
        Scores.save = disk_is_full
    if run.get("nan") and rank == 1:
        of_tokens = freezetrain.scoring.compute.token_nll
        freezetrain.scoring.compute.token_nll = lambda *args: of_tokens(*args) * float("nan")
    expected = 2 if run.get("full") else 1 if run.get("nan") else 0
    try:
        main(run["words"])
    except SystemExit as stopped:
        assert stopped.code == expected, stopped.code  # noqa: PT017


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    runs = Path(sys.argv[1])
    for number, run in enumerate(json.loads(runs.read_text())):
        store = runs.with_name(f"store-{number}")
        try:
            run_ranks(store, 2, work, run)
        except SystemExit:
            if not run.get("kill"):
                raise
            shutil.copytree(run["words"][-1], run["words"][-1] + "-as-killed")
