"""Deliberate faults on 2 ranks: the audit finds each within one interval, and tells every rank."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from forked_ranks import run_ranks
from frozen_reference import TinyLM, uneven_region
from torch import Tensor

from freezetrain.errors import CheckError
from freezetrain.freezing import freeze
from freezetrain.freezing.hooks import GradientMask, StepGuard
from freezetrain.freezing.layout import Shard
from freezetrain.regions import Entries, Resolved

pytest.importorskip("deepspeed")

AUDIT_EVERY = 2  # audited before steps 1, 2, 3, 5, ...

# Deliberate faults: what each does, and the step before which the audit has to find it. 0: the
# proof at the start of the freeze has to.
SKIPPED = "mask skipped"
NOT_MASKED = "mask writes nothing from step 2 on"
NOT_PUT_BACK = "guard writes nothing back"
FIRST = "shards begin one entry further in their parameters"
START = "shards begin one entry further in the flat partition"
COPY = "copy written to on one rank"
MASTER = "master written to"
RANKS_DIFFER = "ranks start with other values"
LOADED = "weights loaded after the engine was made"
STEPS = {
    SKIPPED: 1,
    NOT_MASKED: 2,
    NOT_PUT_BACK: 3,
    FIRST: 0,
    START: 0,
    COPY: 3,
    MASTER: 3,
    RANKS_DIFFER: 0,
    LOADED: 0,
}

# The frozen entry that COPY and MASTER write to: on rank 1, which has the parameter's second half.
WRITTEN = ("down.weight", 47)

COPY_OF = {"fp32": "the torch.float32 copy of ", "bf16": "the torch.bfloat16 copy of "}


class Cell(NamedTuple):
    engine: str
    dtype: str
    fault: str


_ZERO = [SKIPPED, NOT_MASKED, NOT_PUT_BACK, FIRST, START, COPY, MASTER, LOADED]
CELLS = [
    *(Cell("ZeRO-2", dtype, fault) for dtype in ("fp32", "bf16") for fault in _ZERO),
    *(Cell("DDP", "fp32", f) for f in (SKIPPED, NOT_MASKED, NOT_PUT_BACK, MASTER, RANKS_DIFFER)),
    *(Cell("FSDP2", "fp32", f) for f in (SKIPPED, NOT_MASKED, NOT_PUT_BACK, FIRST, MASTER)),
    *(Cell("ZeRO-3", dtype, fault) for dtype in ("fp32", "bf16") for fault in _ZERO),
]


@torch.no_grad()
def write(trained: Any, fault: str, rank: int) -> None:
    """Change one frozen entry, on rank 1 alone."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

    name, index = WRITTEN
    prefix = "" if trained.engine == "FSDP2" else "module."
    parameter: Any = dict(trained.model.named_parameters())[prefix + name]
    if fault == MASTER and trained.optimizer is None:
        whole = safe_get_full_fp32_param(parameter)
        whole.view(-1)[index] += 1
        safe_set_full_fp32_param(parameter, whole)  # its owner is rank 1
    elif rank == 1 and trained.engine == "FSDP2":
        parameter.to_local().view(-1)[index - parameter.numel() // 2] += 1
    elif rank == 1 and trained.engine == "ZeRO-3" and fault == COPY:
        parameter.ds_tensor.data[index - parameter.ds_numel // 2] += 1
    elif rank == 1:
        parameter.data.view(-1)[index] += 1


@torch.no_grad()
def load_others(trained: Any) -> None:
    """Into the model that the engine has, past the engine."""
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(list(trained.model.parameters()), modifier_rank=0):
        trained.model.module.load_state_dict(TinyLM(seed=1).state_dict())


def nothing(*_: Any) -> None:
    pass


def moved(start: int, length: int, owner: Tensor) -> int:
    """One entry further, or before, within bounds."""
    return start + 1 if start + 1 + length <= owner.numel() else max(start - 1, 0)


def shifted(fault: str) -> dict[str, Callable[..., Shard]]:
    """Methods of ``Shard`` that make shards one entry further, or before, within bounds."""
    part, held_by = Shard.part, Shard.held_by

    def broken_part(
        resolved: Resolved,
        number: int,
        owner: Tensor,
        first: int,
        shape: tuple[int, ...],
        start: int | None = None,
    ) -> Shard:
        length = prod(shape)
        if fault == START and start is not None:
            start = moved(start, length, owner)
        elif fault == FIRST and length < resolved.entries.numel:
            first += 1 if first + 1 + length <= resolved.entries.numel else -1
        return part(resolved, number, owner, first, shape, start)

    def broken_held_by(shard: Shard, owner: Tensor, start: int) -> Shard:
        if fault == START:
            start = moved(start, shard.entries.numel, owner)
        return held_by(shard, owner, start)

    return {"part": broken_part, "held_by": broken_held_by}


def broken(fault: str) -> AbstractContextManager[object]:
    """While the freeze begins."""
    if fault == SKIPPED:
        return patch.object(GradientMask, "_mask", nothing)
    if fault in (FIRST, START):
        return patch.multiple(Shard, **shifted(fault))
    return nullcontext()


def broken_later(fault: str) -> AbstractContextManager[object]:
    """While training, from the second step on."""
    if fault == NOT_MASKED:
        return patch.object(Entries, "fill", nothing)
    if fault == NOT_PUT_BACK:
        return patch.object(StepGuard, "_write", nothing)
    return nullcontext()


def complaint(rank: int, world: int, cell: Cell) -> str | None:
    """What this rank is told within one interval of audits."""
    from tiny_engines import Trained

    seed = rank if cell.fault == RANKS_DIFFER else 0
    trained = Trained(cell.engine, cell.dtype, seed)
    if cell.fault == LOADED:
        load_others(trained)
    region = uneven_region(TinyLM())
    try:
        with broken(cell.fault):
            freeze(trained.model, trained.optimizer, region, audit_every=AUDIT_EVERY)
        trained.train(0, 1)
        with broken_later(cell.fault):
            trained.train(1, 2)
            if cell.fault in (COPY, MASTER):
                write(trained, cell.fault, rank)
            trained.train(2, 1 + AUDIT_EVERY)
    except CheckError as error:
        return str(error)
    return None


def marked(cell: Cell) -> Any:
    default = (cell.engine, cell.dtype) in (("ZeRO-2", "bf16"), ("FSDP2", "fp32"))
    marks = () if default or cell.fault in (RANKS_DIFFER, START) else (pytest.mark.exhaustive,)
    return pytest.param(cell, id=", ".join(cell), marks=marks)


@pytest.mark.parametrize("cell", [marked(cell) for cell in CELLS])
def test_every_rank_is_told_in_time(cell: Cell) -> None:
    first, second = run_ranks(complaint, cell)
    assert first is not None
    assert first == second
    if cell.fault == RANKS_DIFFER:
        assert "the ranks start with different frozen values under DDP" in first
    elif not STEPS[cell.fault]:
        named = re.match(r"under (.*), the optimizer's copy of (?:module\.)?(\S+) does", first)
        assert named is not None, first
        assert cell.engine in named[1]
        assert named[2] in uneven_region(TinyLM())
    else:
        assert_names_the_entry(first, cell)


def assert_names_the_entry(message: str, cell: Cell) -> None:
    pattern = r"rank (\d), step (\d): (.*?)(?:module\.)?([\w.]+)\[(\d+)\] is (.*)"
    named = re.match(pattern, message)
    assert named is not None, message
    rank, step, what, name, index, happened = named.groups()
    assert int(step) == STEPS[cell.fault]
    assert uneven_region(TinyLM())[name].mask().flatten()[int(index)]
    if cell.fault in (SKIPPED, NOT_MASKED):
        assert what == "the gradient of "
        assert "not zero" in happened
    else:
        assert what == (COPY_OF[cell.dtype] if cell.fault == COPY else "")
        assert "frozen and changed from" in happened
    if cell.fault in (COPY, MASTER):
        assert (rank, name, int(index)) == ("1", *WRITTEN)
        start = TinyLM().float().get_parameter(name).detach()
        value = float(happened.removeprefix("frozen and changed from ").split()[0])
        assert value == pytest.approx(float(start.flatten()[int(index)]), rel=1e-2)
