"""Curves of gain against loss, one a variant and seed, and intervals over seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from freezetrain.evaluation.equal_gain import loss_at_gain
from freezetrain.evaluation.ratio import LEVEL, students_t

MEASURES = ("mean", "worst")


class Point(NamedTuple):
    """What one run's model gained and lost, in nats per byte."""

    learning_rate: float
    gain: float
    mean: float  # loss of the held-out languages on average
    worst: float  # loss of the held-out language that lost most


Curve = list[Point]  # in order of learning rate


def curves(runs: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, Curve]]:
    """Variant → seed → curve through its learning rates, of the runs that did not fail.

    A run has ``variant``, ``learning_rate``, ``seed``, ``failed``, ``gain``, ``mean`` and
    ``worst`` (None, or with ``delta_nll_per_byte``).
    """
    found: dict[str, dict[int, Curve]] = {}
    for run in runs:
        if failure(run) is None:
            values = run["gain"], run["mean"], run["worst"]["delta_nll_per_byte"]
            point = Point(run["learning_rate"], *values)
            found.setdefault(run["variant"], {}).setdefault(run["seed"], []).append(point)
    for of_variant in found.values():
        for curve in of_variant.values():
            curve.sort()
    return found


def failure(run: Mapping[str, Any]) -> str | None:
    """Why a run is not on a curve; None if it is."""
    if run.get("failed"):
        return str(run["failed"])
    worst = run["worst"] and run["worst"]["delta_nll_per_byte"]
    for name, value in (("gain", run["gain"]), ("mean", run["mean"]), ("worst", worst)):
        if value is None or not math.isfinite(value):
            return f"its {name} is not a finite number"
    return None


def at_gain(curve: Curve, gain: float, measure: str) -> tuple[float, float] | None:
    """(Loss, learning rate) of ``curve`` at ``gain``; None where it does not reach it.

    The position on the curve is the logarithm of the learning rate.
    """
    reading = loss_at_gain(
        [math.log(point.learning_rate) for point in curve],
        [point.gain for point in curve],
        [getattr(point, measure) for point in curve],
        gain,
    )
    return reading and (reading.loss, math.exp(reading.position))


def span(of_seeds: Iterable[Curve]) -> tuple[float, float] | None:
    """Lowest and highest gain that the curve of every seed reaches; None if there is none."""
    ends = [
        (min(point.gain for point in curve), max(point.gain for point in curve))
        for curve in of_seeds
    ]
    if not ends:
        return None
    low, high = max(end[0] for end in ends), min(end[1] for end in ends)
    return (low, high) if low <= high else None


def language_losses(
    runs: Sequence[Mapping[str, Any]], gain: float
) -> dict[str, dict[str, float | None]]:
    """Variant → language → loss at ``gain``, nats per byte, mean over the seeds that reach it.

    Read off curves as ``at_gain`` reads the mean loss; None where no seed reaches it. ``runs`` as
    ``compare_variants`` takes them, with ``languages`` (language → loss).
    """
    there = [run for run in runs if failure(run) is None]
    languages = list(dict.fromkeys(code for run in there for code in run["languages"]))
    found: dict[str, dict[str, float | None]] = {}
    for code in languages:
        of_code = [{**run, "mean": run["languages"][code]} for run in there]
        for name, of_seeds in curves(of_code).items():
            read = [at_gain(curve, gain, "mean") for curve in of_seeds.values()]
            losses = [one[0] for one in read if one is not None]
            found.setdefault(name, {})[code] = fmean(losses) if losses else None
    return found


Interval = tuple[float, float]


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Student's t-interval of the mean of independent ``values``; None of fewer than two."""
    if len(values) < 2:
        return None
    half = _t(len(values), level) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def ratio_interval(
    above: Sequence[float], below: Sequence[float], level: float = LEVEL
) -> Interval | None:
    """Interval of mean(above) / mean(below), pair by pair; None where it has no bounds.

    Fieller, Some Problems in Interval Estimation (1954): all ratios R for which the t-interval of
    above − R · below holds 0. So it holds 1 exactly if that of the difference holds 0.
    """
    count = len(above)
    if count < 2:
        return None
    a, b = fmean(above), fmean(below)
    t = _t(count, level)
    of_pairs = [(x - a, y - b) for x, y in zip(above, below, strict=True)]
    scale = t * t / (count * (count - 1))
    aa, ab, bb = (
        scale * sum(pair[i] * pair[j] for pair in of_pairs) for i, j in ((0, 0), (0, 1), (1, 1))
    )
    # (a − R b)² ≤ aa − 2 R ab + R² bb
    square, half, constant = b * b - bb, a * b - ab, a * a - aa
    if square <= 0:
        return None
    root = math.sqrt(max(0.0, half * half - square * constant))  # rounding: not below
    return (half - root) / square, (half + root) / square


def _t(count: int, level: float) -> float:
    return students_t((1 + level) / 2, count - 1)
