"""Curves of gain against loss, one a variant and seed, and intervals over seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any, NamedTuple

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

    Between two neighbouring learning rates the gain and the logarithm of the loss are parabolas of
    the logarithm of the learning rate, through the two and the next on either side, blended where
    both sides have one (Overhauser, "Analytic definition of curves and surfaces by parabolic
    blending", 1968). On a curve of two they are straight lines, which overrate the loss where
    gains level off. Where one of the two losses is not above 0, losses are taken as they
    are. Nothing is extrapolated. Of
    several crossings, as where a high learning rate turns the curve back, the smallest loss counts.
    """
    found = [
        (getattr(point, measure), point.learning_rate) for point in curve if point.gain == gain
    ]
    for place, (a, b) in enumerate(pairwise(curve)):
        if (a.gain - gain) * (b.gain - gain) < 0:
            found.append(_crossing(curve, place, gain, measure))
    return min(found, default=None)


def _crossing(curve: Curve, place: int, gain: float, measure: str) -> tuple[float, float]:
    """(Loss, learning rate) between ``curve[place]`` and the next, at a gain between theirs."""
    near = curve[max(0, place - 1) : place + 3]
    place = min(place, 1)
    times = [math.log(point.learning_rate) for point in near]
    gains = _Between(times, [point.gain for point in near], place)
    losses = [getattr(point, measure) for point in near]
    least = min(losses[place : place + 2])
    positive = least > 0
    # The logarithm of next to nothing would bend the parabola without end.
    kept = [n for n, one in enumerate(losses) if not positive or one > least / 20]
    loss = _Between(
        [times[n] for n in kept],
        [math.log(losses[n]) if positive else losses[n] for n in kept],
        kept.index(place),
    )
    low, high = times[place], times[place + 1]
    rising = near[place + 1].gain > near[place].gain
    for _ in range(60):  # halved until floats cannot tell
        middle = (low + high) / 2
        low, high = (middle, high) if (gains(middle) < gain) == rising else (low, middle)
    time = (low + high) / 2
    return (math.exp(loss(time)) if positive else loss(time)), math.exp(time)


class _Between:
    """A curve through ``values`` at ``times``, between those at ``place`` and the next."""

    def __init__(self, times: Sequence[float], values: Sequence[float], place: int) -> None:
        self._points = list(zip(times, values, strict=True))
        self._place = place

    def __call__(self, time: float) -> float:
        place, points = self._place, self._points
        share = (time - points[place][0]) / (points[place + 1][0] - points[place][0])
        parts = []
        if place > 0:
            parts.append((1 - share, points[place - 1 : place + 2]))
        if place + 3 <= len(points):
            parts.append((share, points[place : place + 3]))
        if not parts:
            return _through(points[place : place + 2], time)
        if len(parts) == 1:
            return _through(parts[0][1], time)
        return sum(weight * _through(through, time) for weight, through in parts)


def _through(points: Sequence[tuple[float, float]], time: float) -> float:
    """The polynomial of lowest degree through ``points`` (Lagrange), at ``time``."""
    return sum(
        value * math.prod((time - other) / (at - other) for other, _ in points if other != at)
        for at, value in points
    )


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
