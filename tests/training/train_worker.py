"""One rank of `freezetrain train`, which writes down the tokens that it is given.

``python train_worker.py TOKENS STOP_AFTER ARGUMENTS...``: the command line's arguments; SIGTERM is
sent to rank 0 in the midst of step STOP_AFTER (0: never). Several runs are separated by ``//``.
"""

import hashlib
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from freezetrain.cli import main
from freezetrain.training.module import CausalLM

before = CausalLM.on_train_batch_start


def record(tokens: Path, stop_after: int) -> None:
    """A line for each sequence: its place in the run's order and the hash of its tokens."""

    def on_train_batch_start(self, batch, batch_idx):
        rank, world = self.global_rank, self.trainer.world_size
        rows = batch["input_ids"]
        with tokens.open("a") as file:
            for number, row in enumerate(rows):
                place = (batch_idx * world + rank) * len(rows) + number
                file.write(f"{place} {hashlib.sha256(row.cpu().numpy().tobytes()).hexdigest()}\n")
        if rank == 0 and self.global_step + 1 == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return before(self, batch, batch_idx)

    CausalLM.on_train_batch_start = on_train_batch_start


def run(words: list[str]) -> None:
    tokens, stop_after, *arguments = words
    record(Path(tokens), int(stop_after))
    try:
        main(arguments)
    except SystemExit as stopped:
        assert stopped.code == (75 if int(stop_after) else 0), stopped.code  # noqa: PT017


if __name__ == "__main__":
    torch.set_num_threads(1)
    runs: list[list[str]] = [[]]
    for word in sys.argv[1:]:
        if word == "//":
            runs.append([])
        else:
            runs[-1].append(word)
    for words in runs:
        run(words)
    if dist.is_initialized():
        dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort a regular exit
