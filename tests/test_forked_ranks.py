"""Ranks that tests start: what they return, and how one hears of what went wrong."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from forked_ranks import RanksError, run_ranks


def summed(rank: int, world: int, start: torch.Tensor) -> torch.Tensor:
    total = start + rank
    dist.all_reduce(total)
    return total


def test_each_rank_returns_a_value():
    results = run_ranks(summed, torch.tensor([1, 10]), world=3)
    assert [result.tolist() for result in results] == [[6, 33]] * 3


def surroundings(rank: int, world: int) -> tuple[str, str, str, bool]:
    print(f"rank {rank} of {world}")
    variables = os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["SAID"]
    return *variables, dist.is_initialized()


def test_environment_is_that_of_torchrun(tmp_path, monkeypatch):
    monkeypatch.setenv("SAID", "by the test")
    results = run_ranks(surroundings, group=False, logs=tmp_path)
    assert results == [(str(rank), "2", "by the test", False) for rank in (0, 1)]
    assert (tmp_path / "1.out").read_text() == "rank 1 of 2\n"


def one_raises(rank: int, world: int) -> None:
    if rank == 1:
        raise ValueError("on rank 1 alone")
    dist.barrier()


def one_is_killed(rank: int, world: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(30)


def test_a_rank_that_fails_ends_the_others():
    with pytest.raises(RanksError, match="ValueError: on rank 1 alone") as raised:
        run_ranks(one_raises)
    assert raised.value.codes[1] == 1
    start = time.monotonic()
    with pytest.raises(RanksError) as raised:
        run_ranks(one_is_killed)
    assert raised.value.codes == [-9, -9]
    assert time.monotonic() - start < 20
