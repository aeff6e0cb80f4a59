"""Memory that freezing adds to one process that trains a Llama: what the process holds more than
before the freeze, less what one that freezes nothing holds more by then, between steps ("at rest"),
at the peak of a whole step and at the peak from the optimizer's step on, where the guard's values
live. Bytes for each frozen entry; of other ways, for each parameter of the matrices. Each way has a
process of its own; on a GPU they follow one another in one. What three processes that freeze
nothing differ by stands behind ±, and a goal is missed if it is by more. More at rest than indices
and bits take is Python's objects and pages not filled.

On Linux, bytes are those of the process itself: anonymous memory at rest, resident memory at the
peak, which the kernel keeps from when it is told to begin anew. The C library gives back what is
free before each look, so that memory used before is not used again unseen.
"""

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.freezing_ways import (
    AUDITED,
    COMPETITORS,
    MAIN,
    NONE,
    REGIONS,
    Way,
    adamw,
    apply,
    ids_of,
    llama,
    matrices,
    step,
    twins,
)
from benchmarks.harness import Options, Results, Row
from freezetrain.freezing import Freeze

TITLE = "Freezing: memory"
LLAMA = {
    "cpu": {
        "vocab_size": 2048,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 8,
    },
    "cuda": {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
    },
}
BATCH = {"cpu": (1, 64), "cuda": (4, 512)}
DEFAULT = "1%, audited as by default"
WAYS = (*REGIONS, DEFAULT, AUDITED, *COMPETITORS)
MOMENTS = {"rest": "at rest", "step": "at a step's peak", "optimizer": "at the optimizer's"}
MOST = {"rest": 4, "step": 8, "optimizer": 8}
"""Bytes a frozen entry that were asked for."""
GIVE_BACK = 2**16
"""Allocations of so many bytes and more go back to the system as soon as they are freed."""


def measure(options: Options) -> Results:
    """``options.rounds`` is not used: there is one process a way."""
    return measured(options.device, LLAMA[options.device], BATCH[options.device])


def measured(
    device: str, sizes: dict[str, int], batch: tuple[int, int], ways: Iterable[str] = WAYS
) -> Results:
    """Of a Llama of ``sizes`` with batches [sequences, length]."""
    names = [NONE] * 3 + list(ways)
    if device == "cuda":
        every = _on_gpu(names, sizes, batch)
    else:
        every = [_in_process(name, sizes, batch) for name in names]
    none = [_grown(figures) for figures in every[:3]]
    usual = {moment: median(figures[moment] for figures in none) for moment in MOMENTS}
    return {
        "batch": list(batch),
        "none": every[:3],
        "ways": dict(zip(names[3:], every[3:], strict=True)),
        "noise": {m: max(abs(figures[m] - usual[m]) for figures in none) for m in MOMENTS},
        "added": {
            name: {moment: grown - usual[moment] for moment, grown in _grown(figures).items()}
            for name, figures in zip(names[3:], every[3:], strict=True)
        },
    }


def _grown(figures: Results) -> dict[str, int]:
    return {moment: figures[moment][1] - figures[moment][0] for moment in MOMENTS}


def child(name: str, sizes: dict[str, int], batch: tuple[int, int]) -> Results:
    """Bytes at each moment, before ``name`` freezes and after: run in a process of its own."""
    small = llama("cpu", **{**sizes, "hidden_size": 32, "num_hidden_layers": 1})
    # In each process: code that a first freeze loads is not counted.
    step(apply(MAIN, Way(small, adamw(small)), audit_every=1), ids_of(small, 1, (1, 8)))
    del small
    model = llama("cpu", **sizes)
    return _before_and_after(name, Way(model, adamw(model)), ids_of(model, 1, batch), _Resident())


def _on_gpu(names: list[str], sizes: dict[str, int], batch: tuple[int, int]) -> list[Results]:
    model = llama("cuda", **sizes)
    optimizer = adamw(model)
    batches = ids_of(model, 1, batch)
    step(Way(model, optimizer), batches)
    optimizer.zero_grad()
    figures = []
    for name in names:
        way = twins([NONE], model, optimizer)[NONE]
        figures.append(_before_and_after(name, way, batches, _Allocated()))
    return figures


class _Memory(Protocol):
    def now(self) -> int: ...

    def begin(self) -> None:
        """From now on, look for a new peak."""

    def peak(self) -> int: ...


def _before_and_after(name: str, way: Way, batches: list[Tensor], memory: _Memory) -> Results:
    before = _moments(way, batches, memory)
    default = name == DEFAULT
    apply(MAIN if default else name, way, audit_every=100 if default else 0)
    after = _moments(way, batches, memory)
    way.optimizer.zero_grad()
    return {
        "entries": sum(way.model.get_parameter(key).numel() for key in matrices(way.model)),
        "parameters": sum(parameter.numel() for parameter in way.model.parameters()),
        "frozen": way.count,
        "tensors": 0 if way.handle is None else _tensors(way.handle),
        **{moment: [before[moment], after[moment]] for moment in MOMENTS},
    }


def _tensors(handle: Freeze) -> int:
    """Bytes of the tensors that say where the entries are, on the device of the weights."""
    shards = handle.shards
    index = [shard.entries.data for shard in shards]
    device = shards[0].owner.device
    index += [entries.data for entries in handle.region.values()]
    # One tensor stands in both where the region is used as it is.
    held = {
        data.data_ptr(): data.nbytes for data in index if data is not None and data.device == device
    }
    return sum(held.values())


def _moments(way: Way, batches: list[Tensor], memory: _Memory) -> dict[str, int]:
    for _ in range(2):  # what first steps allocate for good; the first two are always audited
        step(way, batches)
    way.optimizer.zero_grad()
    gc.collect()
    figures = {"rest": memory.now()}
    memory.begin()
    step(way, batches)
    figures["step"] = memory.peak()
    step(way, batches, before=memory.begin)
    figures["optimizer"] = memory.peak()
    return figures


class _Resident(_Memory):
    """Of this process, once the C library has given back all that is free."""

    def now(self) -> int:
        self._trim()
        return _kilobytes("smaps_rollup", "Anonymous") * 1024

    def _trim(self) -> None:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
        if trim is not None:
            trim(0)

    def begin(self) -> None:
        self._trim()
        Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        return _kilobytes("status", "VmHWM") * 1024


class _Allocated(_Memory):
    """Of this process on the GPU, by PyTorch's count."""

    def now(self) -> int:
        return torch.cuda.memory_allocated()

    def begin(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()


def _kilobytes(file: str, name: str) -> int:
    figures = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self", file).read_text(), re.MULTILINE)
    assert figures is not None
    return int(figures[1])


def _in_process(name: str, sizes: dict[str, int], batch: tuple[int, int]) -> Results:
    given = {f"MALLOC_{what}_THRESHOLD_": f"{GIVE_BACK}" for what in ("MMAP", "TRIM")}
    words = [sys.executable, "-c", _CHILD, json.dumps([name, sizes, batch])]
    done = subprocess.run(
        words,
        cwd=Path(__file__).parents[1],
        env={**os.environ, **given},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


_CHILD = """
import json, sys
from benchmarks.freezing_memory import child
print(json.dumps(child(*json.loads(sys.argv[1]))))
"""


def rows(figures: Results) -> list[Row]:
    """What freezetrain adds by the frozen entry, what others add by the parameter."""
    return [
        _other_row(figures, name) if name in COMPETITORS else _row(figures, name)
        for name in figures["ways"]
    ]


def _per(figures: Results, name: str, unit: str) -> dict[str, float]:
    return {m: bytes_ / figures["ways"][name][unit] for m, bytes_ in figures["added"][name].items()}


def _moments_text(per: dict[str, float], noise: float) -> str:
    return ", ".join(f"{per[m]:.1f} {when}" for m, when in MOMENTS.items()) + f" (± {noise:.1f})"


def _other_row(figures: Results, name: str) -> Row:
    noise = max(figures["noise"].values()) / figures["ways"][name]["entries"]
    moments = _moments_text(_per(figures, name, "entries"), noise)
    return Row(name, f"a parameter of the matrices: {moments}")


def _row(figures: Results, name: str) -> Row:
    way_figures, added = figures["ways"][name], figures["added"][name]
    per, noise = (
        _per(figures, name, "frozen"),
        max(figures["noise"].values()) / way_figures["frozen"],
    )
    over = [m for m in MOMENTS if per[m] - figures["noise"][m] / way_figures["frozen"] > MOST[m]]
    note = ""
    if over and name in (DEFAULT, AUDITED):
        kept = (added["rest"] - figures["added"][MAIN]["rest"]) / way_figures["frozen"]
        note = f"audits keep the values of the start: {kept:.1f} more"
    elif over:
        beyond = ", ".join(f"{per[m] - MOST[m]:.1f} {MOMENTS[m]}" for m in over)
        index = way_figures["tensors"] / way_figures["frozen"]
        note = f"beyond by {beyond}; indices and bits take {index:.2f}"
    return Row(
        name,
        f"an entry: {_moments_text(per, noise)}",
        f"at most {MOST['rest']}, at peak {MOST['step']}",
        not over,
        note,
    )
