"""What a freeze adds under ZeRO: what is counted, and what the table says of it."""

import pytest
import torch
from torch import nn

from benchmarks.cost_model import Frozen, Machine, Shape, Training
from benchmarks.engines import (
    AGAIN,
    GOAL,
    MATRICES,
    NONE,
    WAYS,
    add_ratios,
    compare,
    held_bytes,
    make_model,
    make_region,
    rows,
)
from benchmarks.harness import Options
from benchmarks.scale import predicted
from freezetrain.freezing import freeze
from freezetrain.regions import Region

pytestmark = pytest.mark.exhaustive

TINY = {
    "hidden": 64, "inner": 96, "layers": 2, "rows": 40, "tokens": 8, "dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def measured():
    """Three ways of ZeRO-3 on two ranks."""
    ways = {name: WAYS[name] for name in (NONE, GOAL, "50% of columns")}
    case = {"stage": 3, "accumulate": 2, "audited": True, "sequences": 1, "rounds": 2}
    cases = {"ZeRO-3": {**case, "ways": ways}}
    return compare(TINY, 2, Options(rounds=2), cases)


def test_what_two_ranks_hold(measured):
    case = measured["cases"]["ZeRO-3"]
    assert case["accumulate"] == 2
    assert case["tokens"] == 2 * 8  # of both ranks
    assert case["parameters"] == sum(p.numel() for p in make_model(TINY).parameters())
    way = case["ways"][GOAL]
    region = make_region(make_model(TINY), *WAYS[GOAL])
    assert way["count"] == region.count
    assert way["region"] == 4 * region.count
    assert len(way["held"]) == 2
    # The mask: the region, int32, whole on each rank. The guard: each rank its half, which is also
    # that of the weights of the forward pass. The audit: their values.
    assert sum(rank["guarded"] for rank in way["held"]) == 4 * region.count
    assert sum(rank["values"] for rank in way["held"]) == 4 * region.count
    for rank in way["held"]:
        assert rank["entries"] == 4 * region.count + rank["guarded"]


def test_the_cost_model_says_the_same(measured):
    training = Training(Shape(TINY["hidden"], TINY["inner"], 2, TINY["rows"]), "ZeRO-3", 2)
    for name, way in measured["cases"]["ZeRO-3"]["ways"].items():
        if name == NONE:
            continue
        told = predicted(training, Frozen(*WAYS[name]), Machine("cpu", 64, 1.0, 1.0))
        for part in ("entries", "guarded", "values"):
            most = max(rank[part] for rank in way["held"])
            # Of a small random region a little more than half falls on one of two ranks.
            assert told[part] == pytest.approx(most, rel=0.1), (name, part)


def test_every_way_took_its_turns(measured):
    for name, way in measured["cases"]["ZeRO-3"]["ways"].items():
        assert len(way["seconds"]) == len(way["inside"]) == 2
        for inside, step in zip(way["inside"], way["seconds"], strict=True):
            assert inside == 0 if name == NONE else 0 < inside < step


def test_rows_of_what_was_measured(measured):
    table = rows(measured)
    assert "16 tokens a micro-step" in table[0].what
    assert [row.goal for row in table] == ["at most 1.01", "at most 1.03"]  # accumulation: no bytes


@pytest.mark.parametrize("kind", ["entries", "columns", "tensors"])
def test_regions_are_of_that_share(kind):
    model = make_model(TINY)
    matrices = sum(p.numel() for n, p in model.named_parameters() if n.endswith("_proj.weight"))
    region = make_region(model, kind, 0.5)
    assert region.count == pytest.approx(matrices / 2, rel=0.15)  # of 14 matrices, 7
    assert {entries.kind for entries in region.values()} <= {
        "entries": {"bits"}, "columns": {"columns"}, "tensors": {"all"},
    }[kind]  # fmt: skip


def test_shared_tensors_count_once():
    model = nn.Linear(20, 10, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    handle = freeze(model, optimizer, Region.random(model, 0.02, seed=0), audit_every=10)
    # Region, mask and guard have one tensor of 4 indices; the audit keeps 4 values.
    assert held_bytes(handle) == {"entries": 16, "guarded": 16, "values": 16}
    handle.remove()


def made(ratio, held):
    """One case in which the step with a freeze takes ``ratio`` times as long."""
    steps = [1.0, 1.1, 0.9, 1.2]
    ways = {name: {"seconds": list(steps), "inside": [0.0] * 4} for name in (NONE, AGAIN)}
    ways[GOAL] = {
        "seconds": [ratio * step for step in steps], "inside": [0.004 * step for step in steps],
        "count": 100, "region": 400, "held": [{"entries": held, "guarded": 200, "values": 200}] * 2,
    }  # fmt: skip
    add_ratios(ways)
    case = {"accumulate": 1, "tokens": 2048, "parameters": 10**7, "ways": ways}
    return {"size": {}, "world": 2, "cases": {"ZeRO-2": case}}


def test_goals_are_judged_by_what_was_measured():
    noise, time, memory = rows(made(1.005, 400))
    assert noise.goal == ""
    assert "1.000" in noise.figure
    assert (time.met, time.note) == (True, "")
    assert time.figure.startswith("1.005")
    assert memory.met
    _, time, memory = rows(made(1.2, 600))
    assert time.met is False
    assert "1.0033" in time.note  # 0.004 of 1.2
    assert memory.met is False
    assert memory.figure.startswith("6.00 bytes")
    assert memory.note.startswith("4.00 the mask, 2.00 the guard")


def test_a_ratio_is_to_the_mean_of_both_unfrozen_steps():
    found = made(1.0, 400)
    ways = found["cases"]["ZeRO-2"]["ways"]
    ways[AGAIN]["seconds"] = [3 * step for step in ways[NONE]["seconds"]]
    add_ratios(ways)
    assert ways[GOAL]["ratio"]["median"] == pytest.approx(0.5)
    assert ways[AGAIN]["ratio"]["median"] == pytest.approx(3)


def test_matrices_are_those_of_the_blocks():
    region = Region.random(make_model(TINY), 0.5, seed=0, parameters=MATRICES)
    assert len(region.names) == 2 * 7
