"""Ranks forked from one process that has imported everything: each a process of its own.

Nothing that one run leaves in memory reaches the next: a checkpoint is all that it can go on from.
"""

import gc
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch._dynamo  # each optimizer would import it, in every rank
import torch.distributed as dist

import freezetrain

LIMIT = timedelta(seconds=60)  # a rank that waits for one that has failed is found out


def run_worker(name: str, *arguments: object) -> None:
    """Run the program ``name`` of this folder, which forks the ranks; AssertionError if it fails.

    For tests, which import neither DeepSpeed nor start a process group of their own.
    """
    worker = Path(__file__).with_name(name)
    package = Path(freezetrain.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, worker, *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": f"{package}:{worker.parents[1] / 'support'}",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-8000:]


def start_ranks(store: Path, world: int, work: Callable[..., None], *args: object) -> list[int]:
    """Fork ``world`` ranks that run ``work(rank, world, *args)``; return their process ids.

    They meet over the file ``store``, a new one for each call.
    """
    torch.set_num_threads(1)
    sys.stdout.flush()
    gc.freeze()  # DeepSpeed collects garbage often: what was imported needs no look
    return [_start_rank(store, rank, world, work, args) for rank in range(world)]


def _start_rank(
    store: Path, rank: int, world: int, work: Callable[..., None], args: Sequence[object]
) -> int:
    process = os.fork()
    if process:
        return process
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=LIMIT
        )
        work(rank, world, *args)
        dist.barrier()
        os._exit(0)  # gloo's threads may abort a regular exit
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def all_end_well(ranks: Sequence[int]) -> bool:
    """Wait for the processes ``ranks``; once one fails, kill the others. Whether none did."""
    running = set(ranks)
    while running:
        for rank in list(running):
            ended, status = os.waitpid(rank, os.WNOHANG)
            if ended:
                running.discard(rank)
            if ended and status:
                for other in running:
                    os.kill(other, signal.SIGKILL)
                    os.waitpid(other, 0)
                return False
        time.sleep(0.01)
    return True


def run_ranks(store: Path, world: int, work: Callable[..., None], *args: object) -> None:
    """:func:`start_ranks` and wait; SystemExit if one of them fails."""
    if not all_end_well(start_ranks(store, world, work, *args)):
        raise SystemExit(f"a rank of {work.__name__} failed, {world=}")
