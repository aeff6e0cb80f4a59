"""The evaluations of one training run, each compared with the first."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from freezetrain.errors import UserError
from freezetrain.escaping import visible
from freezetrain.evaluation.brake import Measure
from freezetrain.evaluation.figures import DocumentSums, Figures, as_figures, safe_exp
from freezetrain.evaluation.losses import Forgetting, Interval, Result, forgetting
from freezetrain.language_names import TOGETHER


@dataclass(frozen=True)
class Loss:
    """What was lost, in a brake's measure: nats per byte, or a share of what the base had."""

    value: float
    interval: Interval | None = None  # 95%; None where it is not known


@dataclass(frozen=True)
class Evaluation:
    """The figures of every language after ``step`` optimizer steps, and what they say."""

    step: int
    figures: dict[str, Figures]
    forgetting: Forgetting  # against the first evaluation, on the same documents
    tokens: int | None = None  # trained on so far
    samples: int | None = None  # sequences trained on so far

    def loss(self, name: str, measure: Measure = "nats_per_byte") -> Loss:
        """What a held-out language has lost, their mean (``"mean"``), or the most (``"worst"``).

        The base is taken on the documents of this evaluation. The mean has no interval in
        perplexity.
        """
        change = self.forgetting
        if name == "mean" and measure == "nats_per_byte":
            return Loss(change.mean, change.mean_interval)
        if name == "mean" and measure == "relative":
            return Loss(change.relative_mean, change.relative_mean_interval)
        if name in TOGETHER:
            losses = [self._language_loss(language, measure) for language in change.languages]
            if name == "mean":
                return Loss(fmean(loss.value for loss in losses))
            intervals = [loss.interval for loss in losses if loss.interval is not None]
            worst = None
            if len(intervals) == len(losses):
                worst = max(low for low, _ in intervals), max(high for _, high in intervals)
            return Loss(max(loss.value for loss in losses), worst)
        return self._language_loss(name, measure)

    def _language_loss(self, language: str, measure: Measure) -> Loss:
        change, figures = self.forgetting.languages[language], self.figures[language]
        base = figures.nll_per_byte - change.delta_nll_per_byte

        def measured(nats: float) -> float:
            if measure == "nats_per_byte":
                return nats
            if measure == "relative":
                return nats / base if base > 0 else 0.0
            # Base and adapted models of a run read the same tokens.
            return safe_exp(nats * figures.bytes / figures.tokens) - 1

        interval = change.interval
        ends = None if interval is None else (measured(interval[0]), measured(interval[1]))
        return Loss(measured(change.delta_nll_per_byte), ends)

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "samples": self.samples,
            "figures": {name: figures.to_dict() for name, figures in self.figures.items()},
            "forgetting": self.forgetting.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Evaluation":
        """The inverse of ``to_dict``."""
        return cls(
            data["step"],
            {name: Figures.from_dict(values) for name, values in data["figures"].items()},
            Forgetting.from_dict(data["forgetting"]),
            data.get("tokens"),
            data.get("samples"),
        )


def language_tag(language: str, figure: str) -> str:
    """What a logger calls a language's figure: ``forgetting/zh/perplexity``."""
    return f"forgetting/{visible(language)}/{figure}"


@dataclass
class History:
    """Evaluations in the order of their steps; the first is the base of all comparisons."""

    target: str | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    base_documents: dict[str, DocumentSums] | None = None
    """What the base gave on each document, where it was evaluated so."""

    def add(
        self,
        step: int,
        results: Mapping[str, Result],
        *,
        tokens: int | None = None,
        samples: int | None = None,
        chosen: Mapping[str, ArrayLike] | None = None,
    ) -> Evaluation:
        """Append the ``results`` after ``step`` optimizer steps, and return it.

        ``chosen``: they are of these documents alone, by their numbers among the base's;
        they are compared with the base on the same ones. Raises what ``forgetting`` raises if
        they cannot be compared.
        """
        base = self._base(results)
        if chosen is not None:
            if not all(isinstance(sums, DocumentSums) for sums in base.values()):
                raise UserError(
                    "expected a base that was evaluated document by document, to compare some of "
                    "its documents, got sums only; evaluate the base with evaluate_documents"
                )
            base = {
                language: sums.take(np.asarray(chosen[language]))  # type: ignore[union-attr]
                for language, sums in base.items()
            }
        compared = forgetting(base, results, self.target)
        if not self.evaluations:
            documents = {n: sums for n, sums in results.items() if isinstance(sums, DocumentSums)}
            self.base_documents = documents if len(documents) == len(results) else None
        figures = {language: as_figures(sums) for language, sums in results.items()}
        self.evaluations.append(Evaluation(step, figures, compared, tokens, samples))
        return self.evaluations[-1]

    def _base(self, results: Mapping[str, Result]) -> Mapping[str, Result]:
        if not self.evaluations:
            return results
        return self.base_documents or self.base.figures

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
        return self.last.forgetting

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
            scalars[language_tag(language, "perplexity")] = figures.perplexity
            scalars[language_tag(language, "bits_per_byte")] = figures.bits_per_byte
            if figures.accuracy is not None:
                scalars[language_tag(language, "accuracy")] = figures.accuracy
        for language, change in result.languages.items():
            scalars[language_tag(language, "delta_nll_per_byte")] = change.delta_nll_per_byte
        return scalars

    def to_dict(self) -> dict[str, Any]:
        """All evaluations with what follows from them, ready for JSON."""
        return {
            "target": self.target,
            "evaluations": [evaluation.to_dict() for evaluation in self.evaluations],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "History":
        """The inverse of ``to_dict``, and of ``state_dict``."""
        history = cls(
            data["target"], [Evaluation.from_dict(evaluation) for evaluation in data["evaluations"]]
        )
        if (documents := data.get("base_documents")) is not None:
            history.base_documents = {
                name: DocumentSums.from_dict(sums) for name, sums in documents.items()
            }
        return history

    def state_dict(self) -> dict[str, Any]:
        """``to_dict`` with what the base gave on each document, so that a run can go on."""
        documents = None
        if self.base_documents is not None:
            documents = {name: sums.to_dict() for name, sums in self.base_documents.items()}
        return {**self.to_dict(), "base_documents": documents}

    def _at(self, index: int) -> Evaluation:
        if not self.evaluations:
            raise UserError("expected an evaluation, got none so far; evaluate the base first")
        return self.evaluations[index]
