"""Runs a function on the ranks of a process group, each a process of its own.

The ranks are forked from Python's fork server, one for each process of pytest, which has imported
what takes long (``rank_imports``): starting two ranks takes a quarter of a second. Nothing that
one run leaves in memory reaches the next.
"""

import importlib.util
import inspect
import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from importlib import import_module
from multiprocessing import connection, forkserver
from pathlib import Path
from types import ModuleType
from typing import Any

_SUPPORT = Path(__file__).parent
_REPOSITORY = _SUPPORT.parents[1]
_ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
_GRACE = 2.0  # seconds that the other ranks have to say what they saw, once one has failed


class RanksError(AssertionError):
    """At least one rank raised, was killed or did not end in time; says how each of them ended."""

    def __init__(self, message: str, codes: list[int]) -> None:
        super().__init__(message)
        self.codes = codes
        """Exit code of each rank: 1 if it raised, -9 if it was killed."""


def run_ranks(
    work: Callable[..., Any] | str,
    *args: Any,
    world: int = 2,
    group: bool = True,
    timeout: float = 100.0,
    environment: Mapping[str, str] | None = None,
    logs: Path | None = None,
) -> list[Any]:
    """``work(rank, world, *args)`` on each of ``world`` ranks; what each returned, in their order.

    Args:
        work: function of a test file or of a module that it imports; or "module:function" where
            the process of pytest need not import that module.
        args: anything that can be pickled, as what ``work`` returns must be.
        group: have a gloo process group ready. In any case the environment is that of torchrun,
            for trainers that make their own.
        timeout: seconds, after which all ranks are killed.
        environment: variables beside those of this process.
        logs: folder that keeps what the ranks wrote, as ``0.out``, ``0.err``, ``1.out`` ...

    The ranks run in the current folder. RanksError, with their last words, if one fails: the
    others are then killed.
    """
    _start_server()
    with tempfile.TemporaryDirectory() as temporary:
        folder = logs or Path(temporary)
        folder.mkdir(exist_ok=True)
        results = [Path(temporary, f"{rank}.result") for rank in range(world)]
        job = {
            "work": _address(work),
            "args": pickle.dumps(args),
            "group": f"file://{temporary}/store" if group else None,
            "timeout": timeout,
            "cwd": os.getcwd(),
            "environment": _environment(world, environment or {}),
        }
        context = multiprocessing.get_context("forkserver")
        ranks = [
            context.Process(target=_run, args=(rank, world, job, folder, results[rank]))
            for rank in range(world)
        ]
        for rank in ranks:
            rank.start()
        codes = _wait(ranks, timeout)
        if any(codes):
            ends = [_last_words(folder, rank, code) for rank, code in enumerate(codes)]
            raise RanksError("\n".join(ends), codes)
        return [pickle.loads(result.read_bytes()) for result in results]


def _start_server() -> None:
    """Start this process's fork server, if it is not running."""
    forkserver.set_forkserver_preload(["rank_imports"])
    kept = dict(os.environ)
    os.environ.update(_ENVIRONMENT, PYTHONPATH=os.pathsep.join([str(_REPOSITORY), str(_SUPPORT)]))
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(kept)


def _address(work: Callable[..., Any] | str) -> tuple[str, str | None, str]:
    """Module, its file (None: found by its name) and function."""
    if isinstance(work, str):
        module, function = work.split(":")
        return module, None, function
    return work.__module__, inspect.getfile(work), work.__qualname__


def _environment(world: int, more: Mapping[str, str]) -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "none",
    }
    return {**os.environ, **_ENVIRONMENT, **launch, **more}


def _wait(ranks: list[Any], timeout: float) -> list[int]:
    """Until all have ended, or until one has failed and the others had time to; exit codes."""
    deadline = time.monotonic() + timeout
    while running := [rank for rank in ranks if rank.exitcode is None]:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        connection.wait([rank.sentinel for rank in running], left)
        if any(rank.exitcode for rank in ranks):
            killed = any((rank.exitcode or 0) < 0 for rank in ranks)
            deadline = min(deadline, time.monotonic() + (0 if killed else _GRACE))
    for rank in ranks:
        rank.kill()
        rank.join()
    return [rank.exitcode for rank in ranks]


def _last_words(folder: Path, rank: int, code: int) -> str:
    errors = (folder / f"{rank}.err").read_text(encoding="utf-8", errors="replace")
    return f"rank {rank} ended with {code}:\n{errors[-5000:]}"


def _run(rank: int, world: int, job: dict[str, Any], folder: Path, result: Path) -> None:
    """In the forked process: do the work, leave the result, and end."""
    code = 1
    try:
        for descriptor, name in ((1, f"{rank}.out"), (2, f"{rank}.err")):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
        os.environ.clear()
        os.environ.update(job["environment"], RANK=str(rank), LOCAL_RANK=str(rank))
        os.chdir(job["cwd"])
        value = _work(rank, world, job)
        result.write_bytes(pickle.dumps(value))
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # gloo's threads may abort a regular exit


def _work(rank: int, world: int, job: dict[str, Any]) -> Any:
    import torch.distributed as dist

    module, file, function = job["work"]
    work = _loaded(module, file)
    for name in function.split("."):
        work = getattr(work, name)
    if job["group"]:
        limit = timedelta(seconds=job["timeout"])
        dist.init_process_group(
            "gloo", init_method=job["group"], rank=rank, world_size=world, timeout=limit
        )
    value = work(rank, world, *pickle.loads(job["args"]))
    if dist.is_initialized():
        dist.barrier()
    return value


def _loaded(name: str, file: str | None) -> ModuleType:
    """The module ``name``: pytest loads test files under names that import would not find."""
    if file is None or name in sys.modules:
        return import_module(name)
    sys.path.insert(0, str(Path(file).parent))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
