"""Processes that run together: how they were started, broadcasts, errors that all of them raise."""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from freezetrain.errors import CheckError, Preempted, UserError

if TYPE_CHECKING:  # slow to import, which the command line's help does without
    import torch.distributed as dist

OUT = "FREEZETRAIN_OUT"

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")

_WATCHDOG = "end-with-parent"  # name of its thread

_SRUN = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES")


@dataclass(frozen=True)
class Launch:
    """Place of a process among those that were started together."""

    rank: int = 0
    local_rank: int = 0
    world: int = 1
    local_world: int = 1  # processes on this machine
    nodes: int = 1
    by: Literal["torchrun", "srun", "freezetrain"] | None = None  # None: one process by itself

    @property
    def external(self) -> bool:
        """Whether all processes were started from outside: devices are given, not chosen."""
        return self.by in ("torchrun", "srun")


def current_launch(environment: Mapping[str, str] | None = None) -> Launch:
    """The launch as the variables of ``environment`` (None: of this process) describe it.

    Raises UserError where they describe several processes but some are missing, or where nodes
    have different numbers of processes.
    """
    variables = os.environ if environment is None else environment
    if "LOCAL_WORLD_SIZE" in variables:
        return _external("torchrun", *_numbers("torchrun", variables, _TORCHRUN))
    if OUT in variables and "LOCAL_RANK" in variables and "WORLD_SIZE" in variables:
        world, rank = _numbers("freezetrain", variables, ("WORLD_SIZE", "LOCAL_RANK"))
        return Launch(rank, rank, world, world, 1, "freezetrain")
    # Some launchers, and DeepSpeed under Lightning, set these for one process too.
    if "RANK" in variables and variables.get("WORLD_SIZE", "1") != "1":
        return _external("torchrun", *_numbers("torchrun", variables, _TORCHRUN))
    tasks = variables.get("SLURM_STEP_NUM_TASKS", variables.get("SLURM_NTASKS", "1"))
    if "SLURM_STEP_ID" in variables and tasks != "1":
        *numbers, nodes = _numbers("srun", variables, _SRUN)
        launch = _external("srun", *numbers)
        if launch.nodes == nodes:
            return launch
        raise UserError(
            f"srun started {launch.world} processes on {nodes} nodes with {launch.local_world} on "
            "each; start as many on each"
        )
    return Launch()


def _external(
    by: Literal["torchrun", "srun"], rank: int, world: int, local_rank: int, local_world: int
) -> Launch:
    if local_world < 1 or world % local_world:
        raise UserError(
            f"{by} started {world} processes with {local_world} on this machine; start as many on "
            "each"
        )
    return Launch(rank, local_rank, world, local_world, world // local_world, by)


def _numbers(by: str, variables: Mapping[str, str], names: tuple[str, ...]) -> list[int]:
    if missing := [name for name in names if name not in variables]:
        do = (
            "start it with srun --ntasks-per-node"
            if missing == ["SLURM_NTASKS_PER_NODE"]
            else "start it with torchrun or srun, or unset them all for one process"
        )
        raise UserError(
            f"the environment tells of several processes, by {by}, but lacks "
            f"{' and '.join(missing)}; {do}"
        )
    values = [variables[name] for name in names]
    if wrong := [f"{n}={v!r}" for n, v in zip(names, values, strict=True) if not v.isdecimal()]:
        raise UserError(f"the environment of {by} must hold numbers, got {wrong[0]}; correct it")
    return [int(value) for value in values]


def shared_folder(launch: Launch, out: Path | None, default: Path) -> Path:
    """The folder that all processes of a run share.

    Raises UserError where several were started without ``out``: each would choose another.
    """
    if launch.by == "freezetrain":
        return Path(os.environ[OUT])
    if launch.external and launch.world > 1 and out is None:
        raise UserError(
            f"{launch.by} started {launch.world} processes, which need one folder; give --out"
        )
    return out or default


def end_with_parent(parent: int | None = None) -> None:
    """End this process as soon as the one that started it is gone; else it would wait for it.

    As in a collective operation, with its GPU held. ``parent``: the id of that process, where it
    may be gone already. A second call changes nothing.
    """
    if any(thread.name == _WATCHDOG for thread in threading.enumerate()):  # none after a fork
        return
    expected = os.getppid() if parent is None else parent

    def watch() -> None:
        while os.getppid() == expected:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name=_WATCHDOG).start()


T = TypeVar("T")


def is_first_rank() -> bool:
    """Whether this process is rank 0, or the only one."""
    return own_rank() == 0


def from_first_rank(value: T) -> T:
    """Rank 0's ``value``; every rank must call this. ``value`` itself without other ranks."""
    import torch.distributed as dist

    if not _several():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def from_all_ranks(value: T, group: "dist.ProcessGroup | None" = None) -> list[T]:
    """The ``value`` of each rank of ``group`` (None: all), in their order; every one calls this."""
    import torch.distributed as dist

    if not _several(group):
        return [value]
    values = [value] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def patient_group() -> "dist.ProcessGroup | None":
    """All ranks, for what one may work at for hours while others wait; every rank calls this.

    Collective operations of other groups give up after half an hour. None without other ranks.
    """
    import torch.distributed as dist

    return dist.new_group(timeout=timedelta(weeks=1), backend="gloo") if _several() else None


@contextmanager
def together(group: "dist.ProcessGroup | None" = None) -> Iterator[None]:
    """A block that all ranks of ``group`` (None: all) leave well, or all leave with an error.

    Every rank must enter it, and none may wait inside for one that may have failed. A rank that
    failed raises its own error, the others that of the first rank that failed: as it is where it is
    one of freezetrain.errors, else a ``UserError`` that quotes it. Without other ranks it is just a
    block.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    for failure in from_all_ranks(_for_others(own), group):
        if failure is not None:
            raise own or failure


def on_first_rank(action: Callable[[], T]) -> T:
    """What ``action()`` returns on rank 0, on every rank; what it raises, they raise together."""
    value: Any = None
    with together():
        if is_first_rank():
            value = action()
    return from_first_rank(value)


def _for_others(error: Exception | None) -> Exception | None:
    """An error as it can be sent to other ranks, which not every one can."""
    if error is None or isinstance(error, UserError | CheckError | Preempted):
        return error
    return UserError(f"rank {own_rank()} failed with {type(error).__name__}: {error}")


def _several(group: "dist.ProcessGroup | None" = None) -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


# What gloo and NCCL say of a connection to a process that has ended.
_LOST = re.compile(
    r"gloo.*(by peer|remote worker)|ncclRemoteError|remote process exited", re.DOTALL
)


def of_lost_rank(error: BaseException) -> bool:
    """Whether ``error``, which torch.distributed raised, says that another rank has ended."""
    return isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None


def own_rank() -> int:
    """This process's number among those that run together; 0 where it is the only one."""
    import torch.distributed as dist

    return dist.get_rank() if _several() else 0
