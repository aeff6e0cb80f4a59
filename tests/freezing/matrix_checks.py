"""The checks that a cell of the engine matrix must pass, on the files that its ranks wrote."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix_cells import (
    BF16_OPTIMIZER,
    DTYPES,
    FSDP2,
    HSDP,
    NO_FREEZE,
    PLAIN,
    STAGE_0,
    STORED_BASE,
    Cell,
    cells,
)
from matrix_reference import Expected, expected, not_trained, region_of, start
from safetensors.torch import load_file
from torch import Tensor

# Against the reference in fp64. "weights": error over change since the start, as vector norms,
# for optimizers that divide by the gradient's size (a gradient near zero may change its sign)
# and for SGD; "norm": relative, of each step.
WEIGHTS = {"fp32": (1e-5, 1e-6), "bf16": (0.1, 1e-3), "bf16-true": (0.3, 2e-2), "fp16": (0.1, 1e-4)}
NORM = {"fp32": 1e-5, "bf16": 2e-2, "bf16-true": 3e-2, "fp16": 5e-3}
KINDS = ("forward", "master", "checkpoint", "export")


@dataclass(frozen=True)
class Outcome:
    """Of one rank."""

    facts: dict[str, Any]
    weights: dict[str, dict[str, Tensor]]
    """Kind of weights -> parameter name -> whole tensor."""


@dataclass(frozen=True)
class Outcomes:
    """Of all cells."""

    folder: Path

    def of(self, cell: Cell) -> list[Outcome]:
        """Each rank's; AssertionError with what it raised, or with its last words."""
        return [self._of(self._folder(cell), rank) for rank in range(cell.world)]

    def not_run(self, cell: Cell) -> str:
        """Why this machine cannot run it; empty if it can."""
        file = self._folder(cell) / "0.json"
        facts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return facts.get("not run", "")

    def refused(self, rank: int) -> dict[str, str]:
        """What was tried -> the message that it gave."""
        file = self.folder / "2" / f"refused-{rank}.json"
        assert file.exists(), f"rank {rank} ended before the refusals: {_log(file.parent, rank)}"
        return json.loads(file.read_text(encoding="utf-8"))

    def _folder(self, cell: Cell) -> Path:
        return self.folder / str(cell.world) / f"cell-{cells(cell.world).index(cell)}"

    @staticmethod
    @cache
    def _of(folder: Path, rank: int) -> Outcome:
        file = folder / f"{rank}.json"
        assert file.exists(), f"rank {rank} ended before this cell: {_log(folder.parent, rank)}"
        facts = json.loads(file.read_text(encoding="utf-8"))
        assert "error" not in facts, f"rank {rank}: {facts['error']}"
        weights: dict[str, dict[str, Tensor]] = {}
        for key, value in load_file(folder / f"{rank}.safetensors").items():
            kind, name = key.split("/")
            weights.setdefault(kind, {})[name] = value
        return Outcome(facts, weights)


def _log(folder: Path, rank: int) -> str:
    """The last words of a rank."""
    return (folder / f"log-{rank}.txt").read_text(encoding="utf-8", errors="replace")[-3000:]


def check(cell: Cell, outcomes: Outcomes) -> None:
    """All checks that a tick stands for; AssertionError from the first that fails."""
    ranks = outcomes.of(cell)
    facts = ranks[0].facts
    assert len({json.dumps(rank.facts) for rank in ranks}) == 1, "ranks report different things"
    should = expected(cell, tuple(facts["skipped"]))
    if cell.precision == "fp16":
        assert facts["skipped"], "loss scaling skipped no step"
        assert len(should.norms) >= 3, "loss scaling skipped nearly all steps"
    assert set(ranks[0].weights) == set(KINDS)
    for rank in ranks:
        for kind, weights in rank.weights.items():
            assert set(weights) == set(should.end), kind
            if cell.variant == NO_FREEZE:
                check_unfrozen(kind, weights, should)
            else:
                check_frozen(cell, kind, weights, should)
        check_consistent(cell, rank.weights, ranks[0].weights["master"])
    check_trained(cell, ranks[0].weights["master"], should)
    check_norms(cell, facts, should)
    if cell.variant != NO_FREEZE:
        check_handle(cell, facts, outcomes)


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
        if cell.variant == NO_FREEZE:
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


def check_handle(cell: Cell, facts: dict[str, Any], outcomes: Outcomes) -> None:
    """The engine was recognized; counts and digest are those of the region on one device."""
    region = region_of(cell)
    assert facts["verified"] == facts["count"] == region.count
    name = cell.engine.split(",")[0]
    assert cell.engine == STAGE_0 or name in facts["engine"], facts["engine"]
    assert ("BF16_Optimizer" in facts["engine"]) == (cell.engine == BF16_OPTIMIZER)
    precision = "fp32" if cell.variant == STORED_BASE else cell.precision
    (alone, *_) = outcomes.of(Cell(PLAIN, precision))
    assert facts["digest"] == alone.facts["digest"]


def bits(values: Tensor) -> Tensor:
    """Of any float dtype, as integers: -0.0 is not 0.0 and NaN is itself."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return values.detach().contiguous().view(integers[values.element_size()])
