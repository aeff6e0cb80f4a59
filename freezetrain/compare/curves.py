"""Curves of gain against loss through the runs of a variant and seed."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean

from freezetrain.compare.results import RunResult
from freezetrain.evaluation.equal_gain import loss_at_gain

Curve = list[RunResult]
"""Runs of one variant and seed that did not fail, in order of learning rate."""


def curves_of(runs: Iterable[RunResult]) -> dict[str, dict[int, Curve]]:
    """Variant → seed → curve through its learning rates, of the runs without a problem."""
    curves: dict[str, dict[int, Curve]] = {}
    for run in sorted(runs, key=lambda run: run.learning_rate):
        if run.problem is None:
            curves.setdefault(run.variant, {}).setdefault(run.seed, []).append(run)
    return curves


def read_curve(curve: Curve, gain: float, measure: str) -> tuple[float, float] | None:
    """(Loss, learning rate) of ``curve`` at ``gain``; None where it does not reach it.

    By :func:`loss_at_gain`; the position on the curve is the logarithm of the learning rate.
    """
    reading = loss_at_gain(
        [math.log(run.learning_rate) for run in curve],
        [run.gain for run in curve],  # type: ignore[misc]  # a run on a curve has a gain
        [getattr(run, measure) for run in curve],
        gain,
    )
    return reading and (reading.loss, math.exp(reading.position))


def gain_range(curve: Curve) -> tuple[float, float] | None:
    """Lowest and highest gain of a curve; None of an empty one."""
    gains = [run.gain for run in curve if run.gain is not None]
    return (min(gains), max(gains)) if gains else None


def common_range(curves: Iterable[Curve]) -> tuple[float, float] | None:
    """Lowest and highest gain that every one of ``curves`` reaches; None if there is none."""
    ends = [gain_range(curve) or (math.inf, -math.inf) for curve in curves]
    low = max((end[0] for end in ends), default=math.inf)
    high = min((end[1] for end in ends), default=-math.inf)
    return (low, high) if low <= high else None


def language_losses(runs: Sequence[RunResult], gain: float) -> dict[str, dict[str, float | None]]:
    """Variant → language → loss at ``gain``, nats per byte, mean over the seeds that reach it.

    Read off curves as the mean loss is; None where no seed reaches the gain.
    """
    good = [run for run in runs if run.problem is None]
    losses: dict[str, dict[str, float | None]] = {}
    for code in dict.fromkeys(code for run in good for code in run.languages or {}):
        of_language = [replace(run, mean=(run.languages or {})[code]) for run in good]
        for variant, curves in curves_of(of_language).items():
            read = [read_curve(curve, gain, "mean") for curve in curves.values()]
            reached = [reading[0] for reading in read if reading is not None]
            losses.setdefault(variant, {})[code] = fmean(reached) if reached else None
    return losses
