"""The evaluations of one training run, each compared with the first."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from freezetrain.errors import UserError
from freezetrain.evaluation.figures import Figures
from freezetrain.evaluation.forgetting import Forgetting, forgetting


@dataclass(frozen=True)
class Evaluation:
    """The figures of every language after ``step`` optimizer steps."""

    step: int
    figures: dict[str, Figures]


@dataclass
class History:
    """Evaluations in the order of their steps; the first is the base of all comparisons."""

    target: str | None = None
    evaluations: list[Evaluation] = field(default_factory=list)

    def add(self, step: int, figures: Mapping[str, Figures]) -> None:
        """Append; raises what ``forgetting`` raises if ``figures`` cannot be compared."""
        base = self.evaluations[0].figures if self.evaluations else figures
        forgetting(base, figures, self.target)
        self.evaluations.append(Evaluation(step, dict(figures)))

    @property
    def base(self) -> Evaluation:
        """The first evaluation; ``UserError`` before there is one."""
        return self._at(0)

    @property
    def last(self) -> Evaluation:
        """The latest evaluation; ``UserError`` before there is one."""
        return self._at(-1)

    def forgetting(self) -> Forgetting:
        """The latest evaluation against the first."""
        return forgetting(self.base.figures, self.last.figures, self.target)

    def scalars(self) -> dict[str, float]:
        """The latest evaluation as flat names and numbers, for a logger."""
        result = self.forgetting()
        scalars = {
            "forgetting/mean": result.mean,
            "forgetting/worst": result.worst[1],
            "forgetting/backward_transfer": result.backward_transfer,
        }
        if result.target_gain is not None:
            scalars["forgetting/target_gain"] = result.target_gain
        for language, figures in self.last.figures.items():
            scalars[f"forgetting/{language}/perplexity"] = figures.perplexity
            scalars[f"forgetting/{language}/bits_per_byte"] = figures.bits_per_byte
        for language, change in result.languages.items():
            scalars[f"forgetting/{language}/delta_nll_per_byte"] = change.delta_nll_per_byte
        return scalars

    def to_dict(self) -> dict[str, Any]:
        """All evaluations with what follows from them, ready for JSON."""
        return {
            "target": self.target,
            "evaluations": [
                {
                    "step": evaluation.step,
                    "figures": {
                        language: figures.to_dict()
                        for language, figures in evaluation.figures.items()
                    },
                    "forgetting": forgetting(
                        self.base.figures, evaluation.figures, self.target
                    ).to_dict(),
                }
                for evaluation in self.evaluations
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "History":
        """The inverse of ``to_dict``: reads steps and sums, the rest follows."""
        history = cls(data["target"])
        for entry in data["evaluations"]:
            sums = entry["figures"].items()
            history.add(
                entry["step"], {language: Figures.from_dict(values) for language, values in sums}
            )
        return history

    def _at(self, index: int) -> Evaluation:
        if not self.evaluations:
            raise UserError("expected an evaluation, got none so far; evaluate the base first")
        return self.evaluations[index]
