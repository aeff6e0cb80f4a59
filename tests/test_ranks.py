import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked_ranks import RanksError, run_ranks
from lightning.fabric.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from freezetrain.devices import cluster_environment
from freezetrain.errors import CheckError, UserError
from freezetrain.ranks import (
    Launch,
    current_launch,
    from_all_ranks,
    from_first_rank,
    of_lost_rank,
    on_first_rank,
    together,
)

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SRUN = {
    "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1",
    "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2",
}  # fmt: skip
CHILD = {"FREEZETRAIN_OUT": "out", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"}
# What Lightning's DeepSpeed strategy leaves in the environment of a process by itself.
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("environment", "launch"),
    [
        ({}, Launch()),
        (TORCHRUN, Launch(5, 1, 8, 4, 2, "torchrun")),
        (SRUN, Launch(5, 1, 8, 4, 2, "srun")),
        ({**SRUN, **TORCHRUN, "RANK": "6"}, Launch(6, 1, 8, 4, 2, "torchrun")),
        (CHILD, Launch(1, 1, 2, 2, 1, "freezetrain")),
        ({**CHILD, "RANK": "1"}, Launch(1, 1, 2, 2, 1, "freezetrain")),
        (ALONE, Launch()),
        # A batch script before srun, and a shell of salloc in which python is started.
        ({name: v for name, v in SRUN.items() if name != "SLURM_STEP_ID"}, Launch()),
        ({**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Launch()),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, Launch()),
    ],
)
def test_launch_is_found_in_the_environment(environment, launch):
    assert current_launch(environment) == launch


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "lacks LOCAL_RANK and LOCAL_WORLD_SIZE"),
        ({**TORCHRUN, "RANK": "a"}, "RANK='a'"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "3"}, "start as many on each"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "0"}, "start as many on each"),
        ({**SRUN, "SLURM_NNODES": "3"}, "8 processes on 3 nodes with 4 on each"),
        (
            {name: v for name, v in SRUN.items() if name != "SLURM_NTASKS_PER_NODE"},
            "start it with srun --ntasks-per-node",
        ),
    ],
)
def test_half_a_launch_is_refused(environment, complaint):
    with pytest.raises(UserError, match=complaint):
        current_launch(environment)


def test_lightning_is_told_the_same(monkeypatch):
    for environment, kind in (
        (TORCHRUN, TorchElasticEnvironment),
        (SRUN, SLURMEnvironment),
        (CHILD, LightningEnvironment),
    ):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            launch = current_launch()
            lightning = cluster_environment(launch)
            assert type(lightning) is kind
            assert lightning.local_rank() == launch.local_rank
            if launch.external:
                assert (lightning.global_rank(), lightning.world_size()) == (
                    launch.rank,
                    launch.world,
                )
                lightning.validate_settings(launch.local_world, launch.nodes)
    assert not SLURMEnvironment(auto_requeue=False).auto_requeue


def test_a_process_ends_with_the_one_that_started_it():
    child = (
        "import time\nfrom freezetrain.ranks import end_with_parent\n"
        "end_with_parent(); end_with_parent()\nprint('ready', flush=True); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print(child.pid, flush=True)\ntime.sleep(60)"
    )
    started = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    pid = int(started.stdout.readline())
    assert started.stdout.readline() == "ready\n"
    assert _runs(pid)
    started.send_signal(signal.SIGKILL)
    started.wait()
    until = time.monotonic() + 20
    while _runs(pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not _runs(pid)


def test_a_process_whose_parent_is_gone_already_ends():
    code = "import time; from freezetrain.ranks import *; end_with_parent(1234567); time.sleep(60)"
    assert subprocess.run([sys.executable, "-c", code], timeout=50).returncode == 1


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:  # one that nobody waits for stays as a zombie
        return stat.read().rpartition(")")[2].split()[0] != "Z"


def complaint(action, *arguments):
    """What this rank raises in ``action``."""
    try:
        action(*arguments)
    except Exception as error:
        return f"{type(error).__name__} {error}"
    return None


def fail(errors, group=None):
    with together(group):
        if dist.get_rank() in errors:
            raise errors[dist.get_rank()]


def agree(rank, world):
    pair = dist.new_group([1, 2])
    return {
        "values": (from_first_rank(rank + 7), from_all_ranks(rank)),
        "made": on_first_rank(lambda: f"on {rank}"),
        "first fails": complaint(on_first_rank, lambda: 1 / rank),
        "none fails": complaint(fail, {}),
        "two fail": complaint(fail, {1: UserError("no"), 2: CheckError("wrong")}),
        # An error that cannot be sent, as it holds a function.
        "third fails": complaint(fail, {2: OSError(28, "full", lambda: None)}),
        "in a pair": complaint(fail, {1: CheckError("moved")}, pair) if rank else None,
    }


def test_what_one_rank_refuses_all_refuse_each_with_its_own_error():
    ranks = run_ranks(agree, world=3)
    seen = {case: [rank[case] for rank in ranks] for case in ranks[0]}
    assert seen["values"] == [(7, [0, 1, 2])] * 3
    assert seen["made"] == ["on 0"] * 3
    division = "UserError rank 0 failed with ZeroDivisionError: division by zero"
    assert seen["first fails"] == ["ZeroDivisionError division by zero", division, division]
    assert seen["none fails"] == [None] * 3
    assert seen["two fail"] == ["UserError no", "UserError no", "CheckError wrong"]
    first, second, third = seen["third fails"]
    assert first == second
    assert first.startswith("UserError rank 2 failed with OSError: [Errno 28] full")
    assert third.startswith("OSError [Errno 28] full")
    assert seen["in a pair"] == [None, "CheckError moved", "CheckError moved"]


def test_without_other_ranks_nothing_is_asked_of_them():
    assert from_first_rank(3) == on_first_rank(lambda: 3) == 3
    assert from_all_ranks(3) == [3]
    with pytest.raises(OSError, match="full"), together():
        raise OSError("full")


def meet_a_rank_that_ends(rank: int, world: int, said: Path) -> None:
    dist.all_reduce(torch.ones(1))
    if rank == 1:
        os._exit(3)
    try:
        dist.all_reduce(torch.ones(1))
    except RuntimeError as error:
        said.write_text(f"{of_lost_rank(error)} {error}")


def test_a_rank_that_has_ended_is_known_by_what_the_others_raise(tmp_path):
    with pytest.raises(RanksError) as caught:
        run_ranks(meet_a_rank_that_ends, tmp_path / "said")
    assert caught.value.codes[1] == 3
    assert (tmp_path / "said").read_text().startswith("True ")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("NCCL error: remote process exited or there was a network error"), True),
        (RuntimeError("NCCL Error 6: ncclRemoteError: a call failed"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ConnectionResetError("Connection reset by peer"), False),  # of a download
    ],
)
def test_other_errors_are_not_of_a_lost_rank(error, lost):
    assert of_lost_rank(error) is lost
