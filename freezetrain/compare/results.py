"""What a comparison of variants gave, as objects; losses and gains in nats per byte."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Interval = tuple[float, float]

Verdict = Literal["better", "worse", "no difference", "one seed", "not reached", "reference"]

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


@dataclass(frozen=True)
class VariantFacts:
    """What a variant is, beside its runs."""

    region: str | None  # the region frozen, as the recipe names it
    frozen: float | None  # share of all weights
    changes: Mapping[str, Any]  # other fields of the training's recipe
    trained_on_old: float  # share of its sequences that are replayed ones
    reads_old: bool  # whether held-out languages' texts made its region or penalty


@dataclass(frozen=True)
class SeedLoss:
    seed: int
    loss: float


@dataclass(frozen=True)
class Unreached:
    """A seed that does not have the gain, and the lowest and highest that it has, None for none."""

    seed: int
    gains: Interval | None


@dataclass(frozen=True)
class LossAtGain:
    """What a variant loses at one gain, nats per byte, and against the reference.

    Means over the seeds that reach the gain, differences over those that the reference reaches
    too, paired by seed; 95% intervals by Student's t over seeds, that of ``relative`` by Fieller.
    """

    loss: float | None
    interval: Interval | None
    by_seed: list[SeedLoss]
    learning_rate: float | None  # at which the curves have the gain, geometric mean
    unreached: list[Unreached]
    difference: float | None
    difference_interval: Interval | None
    relative: float | None  # difference / loss of the reference, None where that is not above 0
    relative_interval: Interval | None
    verdict: Verdict


@dataclass(frozen=True)
class Counts:
    """How many variants were compared with the reference over seeds, and with what verdict."""

    tested: int
    better: int
    worse: int
    better_by_chance: float  # expected where all variants are as good as the reference


@dataclass(frozen=True)
class AtGain:
    gain: float
    variants: dict[str, dict[str, LossAtGain]]  # variant → measure →
    comparisons: dict[str, Counts]  # measure →

    def ranked(self) -> list[str]:
        """Variants by mean loss against the reference's, those that are not reached last.

        Not by the loss itself, which is of other seeds where a variant was run with fewer.
        """

        def key(name: str) -> tuple[bool, float]:
            entry = self.variants[name]["mean"]
            unreached = entry.verdict == "not reached"
            return unreached, 0.0 if unreached else entry.difference or 0.0

        return sorted(self.variants, key=key)


@dataclass(frozen=True)
class VariantRuns:
    """Of a variant: its runs, the gains that all its seeds reach, its time of training."""

    runs: int
    seeds: int
    failed: int
    range: Interval | None
    relative_seconds: float | None  # median over the reference's, on one machine


@dataclass(frozen=True)
class FailedRun:
    variant: str
    learning_rate: float
    seed: int
    failed: str  # why


@dataclass(frozen=True)
class Choice:
    """The variant with the least mean loss among those that are better than the reference."""

    variant: str
    learning_rate: float
    loss: float
    relative: float | None
    worst: Verdict  # of the language that loses most
    alike: list[str]  # other better ones whose difference to it, paired by seed, holds 0


CHOICES = ("no_old_texts", "no_replay", "any")
"""What a user may have of the held-out languages' texts: none, to choose weights, to train on."""


@dataclass(frozen=True)
class Comparison:
    """Mean and worst loss of each variant at equal gains, against the reference."""

    reference: str
    level: float  # of the intervals
    gain: float | None  # the main one; None where the reference has no gain in common
    gains: list[float]
    range: Interval | None  # of gains that all seeds of the reference reach
    why_none: str | None
    at: list[AtGain]
    variants: dict[str, VariantRuns]
    failed: list[FailedRun]
    recommendation: dict[str, Choice | None] = field(default_factory=dict)  # of CHOICES

    @property
    def main(self) -> AtGain | None:
        """The comparison at the main gain."""
        return next((at for at in self.at if at.gain == self.gain), None)

    def to_dict(self) -> dict[str, Any]:
        """As in results.json."""
        return asdict(self)


@dataclass(frozen=True)
class ModelFacts:
    name: str
    parameters: int
    layers: int


@dataclass(frozen=True)
class CompareResults:
    """All figures of `freezetrain compare`; losses and gains in nats per byte."""

    model: ModelFacts
    target: str
    languages: Sequence[str]  # with the target
    learning_rates: Sequence[float]
    seeds: Sequence[int]
    variants: Mapping[str, VariantFacts]
    runs: Sequence[RunResult]
    base: Mapping[str, float]  # language → NLL per byte of the base
    comparison: Comparison
    settings: Mapping[str, Any]  # the recipe

    @property
    def held_out(self) -> list[str]:
        return [code for code in self.languages if code != self.target]

    @property
    def machine(self) -> str:
        return ", ".join(dict.fromkeys(run.machine for run in self.runs if run.machine))

    @property
    def seconds(self) -> float:
        """Of training, all runs together."""
        return round(sum(run.seconds or 0.0 for run in self.runs), 1)

    @property
    def main(self) -> AtGain:
        """At the main gain; only where there is one."""
        main = self.comparison.main
        assert main is not None
        return main

    def to_dict(self) -> dict[str, Any]:
        """As in results.json."""
        return {
            **asdict(self),
            "runs": [run.to_dict() for run in self.runs],
            "machine": self.machine,
            "seconds": self.seconds,
        }
