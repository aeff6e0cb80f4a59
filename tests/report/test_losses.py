import math
from typing import Any

import pytest
from made_runs import make_run

from freezetrain.report.run import (
    interval,
    limit,
    losses,
    mean_loss,
    measure_of,
    model_evaluation,
    worst_loss,
)


def braked(run: dict[str, Any], **brake: Any) -> dict[str, Any]:
    told = {"limits": {"es": 0.05}, "measure": "relative", "action": "stop", "breaches": []}
    return run | {"brake": told | {"ended_at_step": None, "model_step": 60} | brake}


def by_hand(run: dict[str, Any], language: str, measure: str) -> float:
    """From the sums alone."""
    first, last = (run["history"]["evaluations"][n]["figures"][language] for n in (0, -1))
    delta = last["nll"] / last["bytes"] - first["nll"] / first["bytes"]
    if measure == "relative":
        return 100 * delta / (first["nll"] / first["bytes"])
    if measure == "perplexity":
        before, after = (math.exp(one["nll"] / one["tokens"]) for one in (first, last))
        return 100 * (after / before - 1)
    return delta


@pytest.mark.parametrize("measure", ["nats_per_byte", "relative", "perplexity"])
def test_losses_in_each_measure_follow_from_the_sums(measure: str) -> None:
    run = make_run()
    change = run["history"]["evaluations"][-1]["forgetting"]
    expected = {code: by_hand(run, code, measure) for code in ("en", "es", "de")}
    assert losses(change, measure) == pytest.approx(expected)
    assert mean_loss(change, measure) == pytest.approx(sum(expected.values()) / 3)
    assert worst_loss(change, measure) == pytest.approx(max(expected.values()))


@pytest.mark.parametrize("measure", ["relative", "perplexity"])
def test_an_interval_ends_where_a_loss_of_its_ends_would_be(measure: str) -> None:
    run = make_run()
    last = run["history"]["evaluations"][-1]
    before, after = run["history"]["evaluations"][0]["figures"]["de"], last["figures"]["de"]
    ends = last["forgetting"]["languages"]["de"]["interval"]
    for end, found in zip(ends, interval(last, "de", measure) or (), strict=True):
        after["nll"] = before["nll"] + end * before["bytes"]
        assert found == pytest.approx(by_hand(run, "de", measure))


def test_no_interval() -> None:
    last = make_run()["history"]["evaluations"][-1]
    last["forgetting"]["languages"]["de"]["interval"] = None
    assert interval(last, "de", "relative") is None


def test_the_measure_is_that_of_the_brakes_where_they_agree() -> None:
    plain, relative = make_run("a"), braked(make_run("b"))
    assert measure_of([plain]) == "nats_per_byte"
    assert measure_of([plain, relative]) == "relative"
    assert measure_of([relative, braked(make_run("c"), measure="perplexity")]) == "nats_per_byte"


def test_perplexity_is_no_measure_where_a_language_has_no_ratio() -> None:
    run = braked(make_run(), measure="perplexity")
    assert measure_of([run]) == "perplexity"
    run["history"]["evaluations"][2]["forgetting"]["languages"]["de"]["perplexity_ratio"] = None
    assert measure_of([run]) == "nats_per_byte"


def test_limits_are_in_the_unit_that_losses_are() -> None:
    run = braked(make_run())
    assert limit(run, "es", "relative") == 5
    assert limit(run, "de", "relative") is None
    assert limit(run, "es", "nats_per_byte") is None
    assert limit(braked(make_run(), measure="nats_per_byte"), "es", "nats_per_byte") == 0.05
    assert limit(make_run(), "es", "nats_per_byte") is None


def test_the_model_is_of_the_step_that_the_brake_went_back_to() -> None:
    assert model_evaluation(make_run())["step"] == 60
    assert model_evaluation(braked(make_run(), model_step=20))["step"] == 20
    assert model_evaluation(braked(make_run(), model_step=0))["step"] == 0
