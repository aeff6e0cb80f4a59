"""What each run gave, and the curves of gain against loss through the runs of a variant."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from freezetrain.evaluation.equal_gain import loss_at_gain

MEASURES = ("mean", "worst")
"""The losses of a run: of the held-out languages on average, of the one that lost most."""


@dataclass(frozen=True)
class RunResult:
    """What the model of one run gained and lost against the base, in nats per byte.

    None is what is not known, as where a run ``failed``, which says why.
    """

    variant: str
    learning_rate: float
    seed: int
    gain: float | None = None  # of the target language: base minus adapted
    mean: float | None = None  # loss of the held-out languages: adapted minus base
    worst: float | None = None  # of the one that lost most
    worst_language: str | None = None
    languages: Mapping[str, float] | None = None  # held-out language → loss
    seconds: float | None = None  # of training
    tokens: int | None = None  # trained on
    failed: str | None = None
    machine: str | None = None

    @property
    def problem(self) -> str | None:
        """Why the run is not on a curve; None if it is."""
        if self.failed:
            return self.failed
        for name in ("gain", *MEASURES):
            value = getattr(self, name)
            if value is None or not math.isfinite(value):
                return f"its {name} is not a finite number"
        return None

    def to_dict(self) -> dict[str, Any]:
        """As in results.json: ``worst`` with its language."""
        values = asdict(self) | {"languages": dict(self.languages or {})}
        language = values.pop("worst_language")
        if language is not None:
            values["worst"] = {"language": language, "delta_nll_per_byte": self.worst}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunResult":
        """The inverse of :meth:`to_dict`."""
        worst = values["worst"] or {"language": None, "delta_nll_per_byte": None}
        flat = {"worst": worst["delta_nll_per_byte"], "worst_language": worst["language"]}
        return cls(**{**values, **flat})


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
