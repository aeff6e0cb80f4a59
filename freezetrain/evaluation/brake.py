"""The brake: how much the held-out languages may lose, and which model a run is to leave."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from freezetrain.errors import UserError
from freezetrain.evaluation.figures import finite_or_none, safe_exp
from freezetrain.evaluation.history import Evaluation
from freezetrain.evaluation.limits import TOGETHER, Braking

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


class Brake(Braking):
    """The limits of a run, and what follows from its evaluations.

    ``Brake({"es": 0.05, "mean": 0.02}, "roll_back")``: Spanish may lose 5% of the base's NLL per
    byte, and the held-out languages 2% on average; see ``Braking`` for what else can be said. It
    keeps no state: all follows from the evaluations, the first of which is the base and so always
    within the limits. Raises ``UserError`` for values that cannot work.
    """

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

    def breaches(self, evaluations: Sequence[Evaluation]) -> list[Breach]:
        """Limits that are exceeded, in the order of ``evaluations``."""
        return [
            Breach(evaluation.step, name, value, limit)
            for evaluation in evaluations
            for name, limit in self.limits.items()
            if self._loss(evaluation, name, surely=self.beyond_noise) > limit
            # What is told is the loss itself, also where it was its interval that decided.
            for value in [self._loss(evaluation, name)]
        ]

    def within(self, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
        """Those that exceed no limit; the base is always one of them."""
        return [one for one in evaluations if not self.breaches([one])]

    def best(self, evaluations: Sequence[Evaluation]) -> Evaluation:
        """The one within the limits whose target gained most, of equals the one that lost least.

        Without a target the last one within.
        """
        good = self.within(evaluations)
        if good[0].forgetting.target is None:
            return good[-1]
        return max(good, key=lambda one: (_gain(one), -one.forgetting.mean))

    def ended_at(self, evaluations: Sequence[Evaluation]) -> int | None:
        """The step at which training was, or is to be, ended; None: it goes on."""
        broken = self.breaches(evaluations) if self.action in ("stop", "roll_back") else []
        return broken[0].step if broken else None

    def model(self, evaluations: Sequence[Evaluation]) -> Evaluation:
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

    def sentences(self, evaluations: Sequence[Evaluation]) -> list[str]:
        """What the run came to: where a limit was first exceeded, and which model it leaves."""
        first: dict[str, Breach] = {}
        for breach in self.breaches(evaluations):
            first.setdefault(breach.name, breach)
        said = [self.say(breach) for breach in first.values()] or ["no limit was exceeded"]
        step, last = self.model(evaluations).step, evaluations[-1].step
        of = f"step {step:,}" if step == last else f"step {step:,}, and training came to {last:,}"
        return [*said, f"the model is that of {of}"]

    def to_dict(self, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
        """Settings and what they led to, ready for JSON (an infinite loss becomes None)."""
        broken = [asdict(breach) for breach in self.breaches(evaluations)]
        return {
            "limits": dict(self.limits),
            "measure": self.measure,
            "action": self.action,
            "beyond_noise": self.beyond_noise,
            "breaches": [{**one, "value": finite_or_none(one["value"])} for one in broken],
            "ended_at_step": self.ended_at(evaluations),
            "model_step": self.model(evaluations).step,
        }

    def _loss(self, evaluation: Evaluation, name: str, surely: bool = False) -> float:
        """What ``name`` has lost; ``surely``: at the lower end of its 95% interval."""
        change = evaluation.forgetting
        means = {
            "nats_per_byte": (change.mean, change.mean_interval),
            "relative": (change.relative_mean, change.relative_mean_interval),
        }
        if name == "mean" and self.measure in means:
            mean, interval = means[self.measure]
            if not surely:
                return mean
            assert interval is not None
            return interval[0]
        languages = change.languages if name in TOGETHER else [name]
        losses = [self._language_loss(evaluation, language, surely) for language in languages]
        return fmean(losses) if name == "mean" else max(losses)

    def _language_loss(self, evaluation: Evaluation, language: str, surely: bool) -> float:
        change, figures = evaluation.forgetting.languages[language], evaluation.figures[language]
        delta = change.delta_nll_per_byte
        low = delta
        if surely:
            assert change.interval is not None
            low = change.interval[0]
        if self.measure == "nats_per_byte":
            return low
        if self.measure == "relative":
            base = figures.nll_per_byte - delta
            return low / base if base > 0 else 0.0
        # Base and adapted models of a run read the same tokens.
        return safe_exp(low * figures.bytes / figures.tokens) - 1


def _gain(evaluation: Evaluation) -> float:
    gain = evaluation.forgetting.target_gain
    assert gain is not None
    return gain
