"""A run's loss in the measure that its brake uses, so that a limit can be drawn beside it."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

NATS = "nats_per_byte"

UNITS = {
    NATS: "nats per byte",
    "relative": "% of the base’s loss per byte",
    "perplexity": "% of the base’s perplexity",
}


def measure_of(runs: Sequence[Mapping[str, Any]]) -> str:
    """The measure of the runs' brakes; nats per byte where there is none, or where they differ.

    Nats per byte also where the brake compares perplexities and some language has no ratio.
    """
    measures = {run["brake"]["measure"] for run in runs if run.get("brake")}
    measure = measures.pop() if len(measures) == 1 else NATS
    evaluations = [one for run in runs for one in run["history"]["evaluations"]]
    if measure == "perplexity" and any(
        language["perplexity_ratio"] is None
        for one in evaluations
        for language in one["forgetting"]["languages"].values()
    ):
        return NATS
    return measure


def losses(forgetting: Mapping[str, Any], measure: str) -> dict[str, float]:
    """Held-out language → what it lost: nats per byte, or per cent of what the base had."""
    languages = forgetting["languages"].items()
    if measure == "relative":
        return {code: 100 * language["relative"] for code, language in languages}
    if measure == "perplexity":
        return {code: 100 * (language["perplexity_ratio"] - 1) for code, language in languages}
    return {code: language["delta_nll_per_byte"] for code, language in languages}


def mean_loss(forgetting: Mapping[str, Any], measure: str) -> float:
    return fmean(losses(forgetting, measure).values())


def worst_loss(forgetting: Mapping[str, Any], measure: str) -> float:
    return max(losses(forgetting, measure).values())


def interval(
    evaluation: Mapping[str, Any], language: str, measure: str
) -> tuple[float, float] | None:
    """95% interval of what ``language`` lost; None without one."""
    change, after = evaluation["forgetting"]["languages"][language], evaluation["figures"][language]
    nats = change.get("interval")
    if nats is None:
        return None
    if measure == "relative":
        # Of the base on the documents of this evaluation, which may be a subsample.
        before = after["nll"] / after["bytes"] - change["delta_nll_per_byte"]
        return 100 * nats[0] / before, 100 * nats[1] / before
    if measure == "perplexity":
        per_token = after["bytes"] / after["tokens"]
        low, high = (100 * math.expm1(per_token * nat) for nat in nats)
        return low, high
    return nats[0], nats[1]


def mean_interval(forgetting: Mapping[str, Any], measure: str) -> tuple[float, float] | None:
    """95% interval of the mean loss; None without one, as in perplexity."""
    name = {NATS: "mean_interval", "relative": "relative_mean_interval"}.get(measure)
    found = forgetting.get(name) if name else None
    if found is None:
        return None
    scale = 1 if measure == NATS else 100
    return scale * found[0], scale * found[1]


def limit(run: Mapping[str, Any], name: str, measure: str) -> float | None:
    """The brake's limit for a language, ``mean`` or ``worst``; None without one in ``measure``."""
    brake = run.get("brake")
    if not brake or brake["measure"] != measure or name not in brake["limits"]:
        return None
    return brake["limits"][name] * (1 if measure == NATS else 100)


def model_evaluation(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """The evaluation of the model that the run left: the brake's choice, else the last one."""
    evaluations = run["history"]["evaluations"]
    if brake := run.get("brake"):
        for evaluation in evaluations:
            if evaluation["step"] == brake["model_step"]:
                return evaluation
    return evaluations[-1]


def has_courses(runs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run was evaluated on its way, or braked: not just one model beside its base."""
    return any(len(run["history"]["evaluations"]) > 2 or run.get("brake") for run in runs)
