import pytest
import torch

from benchmarks import head as benchmark


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(benchmark, "VOCABULARY", 50)
    monkeypatch.setattr(benchmark, "HIDDEN", 8)


def test_both_ways_leave_the_same_gradients(tiny):
    gradients = {}
    for name, way in benchmark._WAYS.items():
        head, hidden, labels = benchmark._given("cpu", 12)
        way(head, hidden, labels)
        gradients[name] = hidden.grad, head.module.weight.grad
    ours, whole = (gradients[name] for name in (benchmark.OURS, benchmark.WHOLE))
    torch.testing.assert_close(ours, whole)
    assert all(gradient.any() for gradient in ours)


def test_rows_tell_goals_that_are_met_from_those_that_are_not():
    figures = {
        "places": 512, "at_once": 93,
        "seconds": {benchmark.WHOLE: [2.0] * 5, benchmark.OURS: [2.0] * 5},
        "ratios": {benchmark.OURS: {"median": 1.04, "low": 1.0, "high": 1.1}},
        "bytes": {benchmark.OURS: 700_000_000, benchmark.WHOLE: 13_000_000_000},
    }  # fmt: skip
    time, memory = benchmark.rows(figures)
    assert (time.met, memory.met) == (True, False)
    assert memory.figure == "0.70 GB; whole logits 13.00 GB"
