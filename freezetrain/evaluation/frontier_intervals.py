"""Intervals over seeds: of a mean, and of a ratio of two paired means."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from freezetrain.evaluation.ratio import LEVEL, students_t

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
