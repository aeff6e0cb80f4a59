"""What each cell of the matrix must come to, and the checks that it must pass."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from frozen_reference import Constants, steps_of_batches, train
from matrix_cells import (
    BF16_OPTIMIZER,
    CPU_ADAM,
    DTYPES,
    FREEZE,
    FSDP2,
    HSDP,
    NOT_TRAINED,
    NOTHING,
    PULL,
    STAGE_0,
    WEIGHED,
    Cell,
    Outcome,
    base_of_pull,
    not_trained,
    optimizer_of,
    region_of,
    start,
    strengths_of,
)
from torch import Tensor
from torch.optim import Optimizer

from freezetrain.freezing import freeze
from freezetrain.regions import Region

# Against the reference in fp64. "weights": error over change since the start, as vector norms,
# for optimizers that divide by the gradient's size (a gradient near zero may change its sign)
# and for SGD; "norm": relative, of each step.
WEIGHTS = {"fp32": (1e-5, 1e-6), "bf16": (0.1, 1e-3), "bf16-true": (0.3, 2e-2), "fp16": (0.1, 1e-4)}
NORM = {"fp32": 1e-5, "bf16": 2e-2, "bf16-true": 3e-2, "fp16": 5e-3}
KINDS = ("forward", "master", "checkpoint", "export")


@dataclass(frozen=True)
class Expected:
    """Parameter name -> tensor of its shape, in fp64 or bool; and the gradient norms."""

    start: dict[str, Tensor]
    frozen: dict[str, Tensor]
    end: dict[str, Tensor]
    norms: list[float]
    """Before clipping, of each step, over trainable entries."""


def expected(cell: Cell, skipped: tuple[int, ...]) -> Expected:
    """``skipped``: steps that loss scaling left out, and so does the reference."""
    optimizer = "AdamW" if cell.variant == CPU_ADAM else cell.optimizer
    variant = cell.variant if cell.variant in (NOT_TRAINED, WEIGHED) else ""
    # The start's dtype is what counts; with a stored base trainable entries start rounded.
    return _expected(Cell("", cell.precision, optimizer, variant, cell.world, cell.held), skipped)


@cache
def _expected(cell: Cell, skipped: tuple[int, ...]) -> Expected:
    region = region_of(cell)
    model = start(cell).double()
    still = Region.tensors(model, not_trained(cell))
    constants = Constants(model, region | still if cell.freezes else still)
    free = {name: value for name, value in constants.free.items() if value.numel()}
    steps = [
        batches
        for number, batches in enumerate(steps_of_batches(cell.steps, rows=cell.rows))
        if number not in skipped
    ]
    optimizer = optimizer_of(cell.optimizer, free)
    after = pulling(cell, optimizer, free, constants.masks) if cell.pulls else None
    norms = train(constants, list(free.values()), optimizer, steps, after_step=after)
    frozen = dict(constants.masks)
    if cell.held == NOTHING:  # those that would be
        frozen |= {name: entries.mask() for name, entries in region.items()}
    return Expected(
        constants.constants,
        frozen,
        {name: value.detach() for name, value in constants.weights().items()},
        [float(norm) for norm in norms],
    )


def pulling(
    cell: Cell, optimizer: Optimizer, free: dict[str, Tensor], masks: dict[str, Tensor]
) -> Callable[[], None]:
    """θ ← θ − min(1, η·λ)·(θ − θ₀), of trainable entries, to be done after each step."""
    strengths, base = strengths_of(cell), base_of_pull(cell)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}

    @torch.no_grad()
    def after() -> None:
        for name, value in free.items():
            share = (rates[id(value)] * strengths[name][~masks[name]]).clamp(max=1.0)
            value -= share * (value - base[name][~masks[name]].double())

    return after


def check(cell: Cell, ranks: list[Outcome]) -> None:
    """All checks that a tick stands for; AssertionError from the first that fails."""
    facts = ranks[0].facts
    # As text: norms of steps that loss scaling skips are NaN.
    assert len({repr(rank.facts) for rank in ranks}) == 1, "ranks report different things"
    should = expected(cell, skipped(facts))
    if cell.precision == "fp16":
        assert facts["skipped"], "loss scaling skipped no step"
        assert len(should.norms) >= 3, "loss scaling skipped nearly all steps"
    assert set(ranks[0].weights) == set(KINDS)
    for rank in ranks:
        for kind, weights in rank.weights.items():
            assert set(weights) == set(should.end), kind
            if cell.held == NOTHING:
                check_unfrozen(kind, weights, should)
            else:
                check_frozen(cell, kind, weights, should)
        check_consistent(cell, rank.weights, ranks[0].weights["master"])
    check_trained(cell, ranks[0].weights["master"], should)
    check_norms(cell, facts, should)
    if cell.freezes:
        check_handle(cell, facts)
    if cell.pulls:
        check_pull(cell, facts, ranks[0].weights["master"], should)


def check_frozen(cell: Cell, kind: str, weights: dict[str, Tensor], should: Expected) -> None:
    """Drift exactly 0: the bits of the start, in the dtype that holds the weights."""
    base = dict(start(cell).named_parameters())
    for name, value in weights.items():
        held = base[name].detach().to(value.dtype)
        if kind == "master" and "ZeRO" in cell.engine:
            value, held = value + 0.0, held + 0.0  # DeepSpeed adds zeros, which ends -0.0
        frozen = should.frozen[name]
        moved = (bits(value) != bits(held)) & frozen
        assert not moved.any(), (
            f"{int(moved.sum())} of {int(frozen.sum())} frozen entries of {name} moved in {kind}: "
            f"{held[moved][:3].tolist()} became {value[moved][:3].tolist()}"
        )


def check_unfrozen(kind: str, weights: dict[str, Tensor], should: Expected) -> None:
    """Without a freeze the same entries do move, so that the other checks can fail."""
    for name, value in weights.items():
        frozen = should.frozen[name]
        held = should.start[name].to(value.dtype)
        moved = (bits(value) != bits(held))[frozen]
        assert moved.float().mean() > 0.8 or not frozen.any(), f"{name} did not move in {kind}"


def check_consistent(
    cell: Cell, weights: dict[str, dict[str, Tensor]], master: dict[str, Tensor]
) -> None:
    """Forward pass, checkpoint and export hold the masters, rounded where they are 16-bit."""
    for kind, values in weights.items():
        for name, value in values.items():
            assert torch.equal(value, master[name].to(value.dtype)), f"{name} differs in {kind}"
    dtypes = {value.dtype for value in weights["forward"].values()}
    if cell.deepspeed or cell.engine in (FSDP2, HSDP) or cell.precision == "bf16-true":
        assert dtypes == {DTYPES[cell.precision]}  # else autocast rounds them inside the layers
    full = torch.bfloat16 if cell.precision == "bf16-true" else torch.float32
    stored = {n: v.dtype for n, v in weights["checkpoint"].items() if n not in not_trained(cell)}
    assert set(stored.values()) == {full}


def check_trained(cell: Cell, master: dict[str, Tensor], should: Expected) -> None:
    """Trainable entries follow the reference, and did move."""
    error = change = 0.0
    for name, value in master.items():
        free = ~should.frozen[name]
        if cell.held == NOTHING:
            free = torch.ones_like(free)
        began, end, now = (t[free].double() for t in (should.start[name], should.end[name], value))
        error += float((now - end).square().sum())
        change += float((end - began).square().sum())
        far = (end - began).abs() > 0.02 * began.abs() + 1e-3
        still = int(((now == began) & far).sum())
        assert not still, f"{still} trainable entries of {name} did not move"
    bound = WEIGHTS[cell.precision][cell.optimizer in ("SGD", "Nesterov")]
    assert (error / change) ** 0.5 <= bound, f"trainable entries are {(error / change) ** 0.5} off"


def check_norms(cell: Cell, facts: dict[str, Any], should: Expected) -> None:
    """Gradient norms before clipping count trainable entries alone."""
    taken = [n for step, n in enumerate(facts["norms"]) if step not in facts["skipped"]]
    assert len(taken) == len(should.norms)
    assert taken == pytest.approx(should.norms, rel=NORM[cell.precision])


def check_pull(
    cell: Cell, facts: dict[str, Any], master: dict[str, Tensor], should: Expected
) -> None:
    """Distances are those of the masters; and without the pull the weights would be elsewhere."""
    base = base_of_pull(cell)
    far = {n: float((master[n].double() - b).norm() / b.double().norm()) for n, b in base.items()}
    far = {name: value for name, value in far.items() if name not in not_trained(cell)}
    assert facts["distances"] == pytest.approx(far, rel=1e-6)
    free = expected(replace(cell, held=NOTHING if cell.held == PULL else FREEZE), skipped(facts))
    apart = sum(float((should.end[n] - free.end[n]).square().sum()) for n in base)
    change = sum(float((should.end[n] - should.start[n]).square().sum()) for n in base)
    assert (apart / change) ** 0.5 > 2 * WEIGHTS[cell.precision][0]


def skipped(facts: dict[str, Any]) -> tuple[int, ...]:
    return tuple(facts["skipped"])


def check_handle(cell: Cell, facts: dict[str, Any]) -> None:
    """The engine was recognized; counts and digest are those of the region on one device."""
    region = region_of(cell)
    assert facts["verified"] == facts["count"] == region.count
    name = cell.engine.split(",")[0]
    assert cell.engine == STAGE_0 or name in facts["engine"], facts["engine"]
    assert ("BF16_Optimizer" in facts["engine"]) == (cell.engine == BF16_OPTIMIZER)
    alone = start(cell)
    optimizer = torch.optim.AdamW(alone.parameters())
    assert facts["digest"] == freeze(alone, optimizer, region).digest


def bits(values: Tensor) -> Tensor:
    """Of any float dtype, as integers: -0.0 is not 0.0 and NaN is itself."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return values.detach().contiguous().view(integers[values.element_size()])
