"""The brake: how much the held-out languages may lose, and which model a run is to leave."""

import math
from collections.abc import Collection, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from freezetrain.errors import UserError, near_misses
from freezetrain.language_names import TOGETHER, check_evaluated

if TYPE_CHECKING:  # recipes import this file, which is to stay light
    from freezetrain.evaluation.history import Evaluation

Action = Literal["warn", "stop", "roll_back", "select"]

Measure = Literal["relative", "perplexity", "nats_per_byte"]

_UNITS: dict[str, tuple[float, str]] = {  # of what is lost, what is written after it
    "relative": (100, "% of the base's NLL per byte"),
    "perplexity": (100, "% of the base's perplexity"),
    "nats_per_byte": (1, " nats per byte"),
}


@dataclass(frozen=True)
class Breach:
    """A limit that an evaluation exceeds."""

    step: int
    name: str
    """A held-out language, "mean" or "worst"."""
    value: float
    """What was lost, in the brake's measure; infinite where a perplexity is."""
    limit: float


@dataclass
class Brake:
    """Limits of what held-out languages may lose, looked at in each evaluation of the watch.

    ``Brake({"es": 0.05, "mean": 0.02}, "roll_back")``: Spanish may lose 5% of the base's NLL per
    byte, and the held-out languages 2% on average. It keeps no state: all follows from a run's
    evaluations, the first of which is the base and so always within the limits. Raises
    ``UserError`` for values that cannot work.
    """

    limits: dict[str, float] = field(default_factory=dict)
    """Largest loss of a held-out language, by its name, of their mean (mean), or of each of them
    (worst), in the unit of measure: {es: 0.05, mean: 0.02}."""
    action: Action = "stop"
    """Where a limit is exceeded. warn: say so, and go on. stop: end training there. roll_back: end
    training, with the model of the last evaluation within the limits. select: go on, and at the end
    take the model of the evaluation within the limits with the greatest gain of the target; without
    a target, of the last one."""
    measure: Measure = "relative"
    """relative: rise of the NLL per byte, as a share of the base's. perplexity: rise of the
    perplexity, as a share of the base's. nats_per_byte: rise of the NLL per byte."""
    beyond_noise: bool = False
    """A limit counts as exceeded only where the whole 95% interval of the loss lies above it."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("action", self.action, get_args(Action)),
            ("measure", self.measure, get_args(Measure)),
        ):
            if value not in known:
                raise UserError(
                    f"the brake's {name} must be one of {', '.join(known)}, got "
                    f"{value!r}{near_misses(value, known)}"
                )
        if not isinstance(self.limits, Mapping) or not self.limits:
            raise UserError(
                f"the brake's limits must be one or more, of a held-out language, mean or worst, "
                f"got {self.limits!r}; give one, or leave the brake out"
            )
        for name, limit in self.limits.items():
            if not isinstance(name, str):
                raise UserError(
                    f"the brake's limits are named by language, got {name!r}; put it in quotes if "
                    "a language is called so"
                )
            if not (math.isfinite(limit) and limit > 0):
                raise UserError(
                    f"the brake's limit of {name!r} must be a number above 0, got {limit!r}; give "
                    "what may be lost, as 0.05 for 5%"
                )
        if self.beyond_noise and "mean" in self.limits and self.measure == "perplexity":
            raise UserError(
                "the brake's beyond_noise needs an interval of the mean, which is not known in "
                "perplexity; give the measure relative or nats_per_byte, or limit the worst"
            )

    def check_names(self, languages: Collection[str], trained: Collection[str]) -> None:
        """Raise ``UserError`` for a limit of what is not held out, or of a name with two meanings.

        ``languages``: those that are evaluated; ``trained``: those that are trained on.
        """
        held_out = [language for language in languages if language not in trained]
        check_evaluated(languages)
        for name in self.limits:
            if name not in held_out and name not in TOGETHER:
                which = "which is trained on, is" if name in trained else "which is"
                raise UserError(
                    f"the brake limits {name!r}, {which} not one of the held-out languages "
                    f"{', '.join(held_out)}{near_misses(name, [*held_out, *TOGETHER])}; give one "
                    "of them, mean or worst"
                )

    @property
    def goes_back(self) -> bool:
        """Whether the model may be one of before the end, so that weights are kept on the way."""
        return self.action in ("roll_back", "select")

    def check(self, documents: Mapping[str, Sized], target: str | None) -> None:
        """Raise ``UserError`` unless a run that evaluates ``documents`` can be held to the limits.

        ``documents``: language -> its documents; all but ``target`` are held out.
        """
        self.check_names(documents.keys(), [] if target is None else [target])
        held_out = [language for language in documents if language != target]
        needed = held_out if set(TOGETHER) & set(self.limits) else self.limits
        for language in needed if self.beyond_noise else ():
            if len(documents[language]) < 2:
                raise UserError(
                    f"the brake's beyond_noise needs an interval of what {language!r} loses, which "
                    "one document does not give; give more of them, or leave beyond_noise out"
                )

    def breaches(self, evaluations: Sequence["Evaluation"]) -> list[Breach]:
        """Limits that are exceeded, in the order of ``evaluations``."""
        breaches = []
        for evaluation in evaluations:
            for name, limit in self.limits.items():
                loss = evaluation.loss(name, self.measure)
                deciding = loss.value
                if self.beyond_noise:
                    assert loss.interval is not None  # as check asks for
                    deciding = loss.interval[0]
                if deciding > limit:
                    breaches.append(Breach(evaluation.step, name, loss.value, limit))
        return breaches

    def within(self, evaluations: Sequence["Evaluation"]) -> list["Evaluation"]:
        """Those that exceed no limit; the base is always one of them."""
        return [evaluation for evaluation in evaluations if not self.breaches([evaluation])]

    def best(self, evaluations: Sequence["Evaluation"]) -> "Evaluation":
        """The one within the limits whose target gained most, of equals the one that lost least.

        Without a target the last one within.
        """
        within = self.within(evaluations)
        if within[0].forgetting.target is None:
            return within[-1]
        return max(within, key=_gain_then_loss)

    def ended_at(self, evaluations: Sequence["Evaluation"]) -> int | None:
        """The step at which training was, or is to be, ended; None: it goes on."""
        breaches = self.breaches(evaluations) if self.action in ("stop", "roll_back") else []
        return breaches[0].step if breaches else None

    def model(self, evaluations: Sequence["Evaluation"]) -> "Evaluation":
        """The evaluation of the model that a run which ends after these is to leave."""
        if self.action == "select":
            return self.best(evaluations)
        if self.action == "roll_back" and self.ended_at(evaluations) is not None:
            return self.within(evaluations)[-1]
        return evaluations[-1]

    def say(self, breach: Breach) -> str:
        """``breach`` as a sentence, without its full stop."""
        times, unit = _UNITS[self.measure]
        who = {
            "mean": "the held-out languages have lost on average",
            "worst": "the most forgotten language has lost",
        }.get(breach.name, f"{breach.name} has lost")
        return (
            f"{who} {times * breach.value:.4g}{unit} at step {breach.step:,}, more than the limit "
            f"of {times * breach.limit:g}{'%' if times > 1 else ''}"
        )

    def sentences(self, evaluations: Sequence["Evaluation"]) -> list[str]:
        """What the run came to: where a limit was first exceeded, and which model it leaves."""
        first: dict[str, Breach] = {}
        for breach in self.breaches(evaluations):
            first.setdefault(breach.name, breach)
        said = [self.say(breach) for breach in first.values()] or ["no limit was exceeded"]
        step, last = self.model(evaluations).step, evaluations[-1].step
        model = f"step {step:,}"
        if step != last:
            model += f", and training came to {last:,}"
        return [*said, f"the model is that of {model}"]

    def to_dict(self, evaluations: Sequence["Evaluation"]) -> dict[str, Any]:
        """Settings and what they led to, ready for JSON (an infinite loss becomes None)."""
        breaches = [
            {**asdict(breach), "value": breach.value if math.isfinite(breach.value) else None}
            for breach in self.breaches(evaluations)
        ]
        return {
            "limits": dict(self.limits),
            "measure": self.measure,
            "action": self.action,
            "beyond_noise": self.beyond_noise,
            "breaches": breaches,
            "ended_at_step": self.ended_at(evaluations),
            "model_step": self.model(evaluations).step,
        }


def _gain_then_loss(evaluation: "Evaluation") -> tuple[float, float]:
    gain = evaluation.forgetting.target_gain
    assert gain is not None
    return gain, -evaluation.forgetting.mean
