"""The cost model against hand counts and against real freezes."""

from dataclasses import replace

import pytest

from benchmarks import scale
from benchmarks.cost_model import (
    H100,
    SHAPES,
    Frozen,
    Machine,
    Shape,
    Training,
    freeze_cost,
    micro_steps,
    restore_cost,
)
from benchmarks.engines import make_model, make_region
from benchmarks.scale import run_all

pytestmark = pytest.mark.exhaustive

TINY = {
    "hidden": 64, "inner": 96, "layers": 2, "rows": 40, "tokens": 8, "dtype": "float32",
}  # fmt: skip
CPU = Machine("cpu", line=64, bandwidth=100.0, scattered=50.0)


def shape_of(size):
    return Shape(size["hidden"], size["inner"], size["layers"], size["rows"])


def test_weights_are_those_of_llama():
    # Known totals: 6,738,415,616 and 68,976,648,192, with norms of 2 a block and 1 at the end.
    for name, total, layers, hidden in (
        ("7B", 6_738_415_616, 32, 4096), ("70B", 68_976_648_192, 80, 8192),
    ):  # fmt: skip
        assert SHAPES[name].weights + (2 * layers + 1) * hidden == total
    model = make_model(TINY)
    norms = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    assert shape_of(TINY).weights + norms == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("kind", "ratio"), [("entries", 0.02), ("columns", 0.25)])
def test_lines_touched_are_those_of_a_drawn_region(kind, ratio):
    """Counted: lines of 16 fp32 entries in which a random region has one."""
    size = {**TINY, "hidden": 256, "inner": 512}
    region = make_region(make_model(size), kind, ratio)
    lines = sum(
        int(entries.mask().view(-1, 16).any(1).sum()) * 64 for entries in region.values()
    )  # fmt: skip
    expected = Frozen(kind, ratio).touched(CPU, shape_of(size).matrices, 4)
    assert expected == pytest.approx(lines, rel=0.02)


def test_a_hand_count():
    """One block of 7 matrices of 64 × 64: 28,672 entries, 1% frozen, fp32, one process."""
    training = Training(Shape(64, 64, 1, 10), "DDP", 1, gradient=4)
    cost = freeze_cost(training, Frozen("entries", 0.01), CPU)
    count = 286.72
    lines = 28_672 / 16 * (1 - 0.99**16) * 64
    assert cost.entries == cost.guarded == pytest.approx(4 * count)
    assert cost.values == pytest.approx(4 * count)
    assert cost.mask_moved == pytest.approx(2 * lines + 4 * count)
    assert cost.guard_moved == pytest.approx(3 * lines + 2 * 4 * count + 2 * 4 * count)
    assert cost.mask_seconds == pytest.approx(2 * lines / 50 + 4 * count / 100)


def test_fetching_all_lines_is_the_most_that_it_takes():
    training = Training(Shape(64, 64, 1, 10), "DDP", 1, gradient=4)
    cost = freeze_cost(training, Frozen("columns", 0.5), CPU)
    indices = 7 * 32 * 4
    assert cost.mask_seconds == pytest.approx(2 * 28_672 * 4 / 100 + indices / 100)


def test_parts_of_the_ranks():
    shape = SHAPES["7B"]
    assert Training(shape, "ZeRO-3", 8).own == shape.matrices / 8
    # An inner rank of ZeRO-2 has decoder weights only.
    assert Training(shape, "ZeRO-2", 8).own == shape.weights / 8
    # Of two, each has the embedding or the head as well.
    assert Training(shape, "ZeRO-2", 2).own == shape.matrices / 2


def test_what_training_holds():
    """16 bytes a weight, of which ZeRO-2 splits all but the 2 of the copy, ZeRO-3 all."""
    shape = SHAPES["7B"]
    assert Training(shape, "ZeRO-3", 8).state == 16 * shape.weights / 8
    assert Training(shape, "ZeRO-2", 8).state == (2 + 14 / 8) * shape.weights
    assert Training(shape, "DDP", 8, gradient=4).state == 16 * shape.weights


def test_restore_is_that_of_the_paper():
    cost = restore_cost(Training(SHAPES["7B"], "ZeRO-2", 8, tokens=1024, micro_steps=16), H100)
    assert cost.entries == pytest.approx(19.4e9, rel=2e-3)  # 3 bytes a decoder weight
    # ~mask 2, mul_ 5 and add_ 6 bytes a weight.
    assert cost.mask_moved == 13 * SHAPES["7B"].matrices
    per_step = 16 * cost.mask_seconds / cost.step_seconds
    assert cost.share == pytest.approx(per_step)


def test_micro_steps_make_up_a_batch():
    assert micro_steps(2**22, 8, 8192) == 64


def test_bytes_of_real_freezes(monkeypatch):
    """One process, in this one; test_engines.py has the model beside two ranks of ZeRO."""
    monkeypatch.setattr(scale, "on_ranks", lambda world, module, given: [run_all(**given)])
    checks = scale.check(TINY, {1: ["DDP"]}, steps=1)
    assert [line["region"] for line in checks] == list(scale.REGIONS)
    for line in checks:
        assert line["measured"]["seconds"] > 0
        assert line["fixed"] > 0
        for part in ("entries", "guarded", "values"):
            # Counts of 1% of a small matrix are rounded to whole entries.
            assert line["predicted"][part] == pytest.approx(line["measured"][part], rel=0.01), line
    table = scale.rows({"machine": scale.asdict(H100), "table": [], "checks": checks})
    assert len(table) == 1 + 1 + 1


def test_goals_are_judged_by_the_figures():
    lines = scale.table(H100)
    assert len(lines) == 5 * len(scale.REGIONS) + 2
    slow = scale.table(
        replace(H100, bandwidth=H100.bandwidth / 100, scattered=H100.scattered / 100)
    )
    for found, met in ((lines, True), (slow, False)):
        judged = [
            row
            for row in scale.rows({"machine": scale.asdict(H100), "table": found, "checks": []})
            if row.goal
        ]
        assert len(judged) == 5
        assert all(row.met is met for row in judged)
        assert all(bool(row.note) is not met for row in judged)


@pytest.mark.parametrize(("measured", "met"), [(1000, True), (900, False)])
def test_bytes_that_are_off_are_told(measured, met):
    figures = {"entries": 1000, "guarded": 500, "values": 500, "seconds": 0.001}
    line = {
        "processes": 2, "engine": "ZeRO-2", "region": "1% of entries", "bandwidth": 1e10,
        "scattered": 1e10, "fixed": 0.001, "predicted": figures,
        "measured": {**figures, "entries": measured, "seconds": 0.004},
    }  # fmt: skip
    found = {"machine": scale.asdict(H100), "table": [], "checks": [line]}
    _, bytes_row, seconds_row = scale.rows(found)
    assert bytes_row.met is met
    assert ("1.111" in bytes_row.note) is not met
    assert seconds_row.figure == "2.00 to 2.00 over 1 runs"


def test_bandwidth_counts_reading_and_writing(monkeypatch):
    monkeypatch.setattr(scale, "_seconds", lambda work, device: (work(), 2.0)[1])
    found = scale.bandwidths(1010, 64)
    assert found == {"bandwidth": 2 * 4 * 1010 / 2, "scattered": 2 * 64 * 10 / 2}
