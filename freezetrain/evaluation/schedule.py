"""When the held-out languages are evaluated, and how much of the time that may take."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from freezetrain.errors import UserError
from freezetrain.evaluation.documents import Document, fingerprint

DEFAULT_STEPS = 100

PAPER_SAMPLES = (0, 2_000, 5_000, 10_000, 20_000, 50_000, 200_000)
"""Training samples after which Zhang et al. (ACL 2024, arXiv 2402.14700) evaluate perplexity."""


class Trained(NamedTuple):
    """How far training is, over all ranks; None where nobody counts."""

    step: int  # optimizer steps
    tokens: int | None = None
    samples: int | None = None  # sequences


@dataclass(frozen=True)
class Schedule:
    """Marks in one unit: every so many optimizer steps or training tokens, or given samples.

    Without any, every 100 steps. Raises ``UserError`` for more than one, or for none above 0.
    """

    every_n_steps: int | None = None
    every_n_tokens: int | None = None
    at_samples: Sequence[int] = ()

    def __post_init__(self) -> None:
        marks = tuple(sorted(set(self.at_samples)))
        every = {"every_n_steps": self.every_n_steps, "every_n_tokens": self.every_n_tokens}
        given = {name: value for name, value in every.items() if value is not None}
        if len(given) + bool(marks) > 1:
            raise UserError(
                "expected one of every_n_steps, every_n_tokens and at_samples, got "
                f"{', '.join([*given, *['at_samples'] * bool(marks)])}; leave the others out"
            )
        for name, value in given.items():
            if value < 1:
                raise UserError(f"{name} must be 1 or more, got {value}")
        if marks and (marks[0] < 0 or marks[-1] < 1):
            raise UserError(
                f"at_samples must be numbers of training samples, one of them above 0, got {marks}"
            )
        object.__setattr__(self, "at_samples", marks)
        if not given and not marks:
            object.__setattr__(self, "every_n_steps", DEFAULT_STEPS)

    @property
    def unit(self) -> str:
        """What it counts: ``"step"``, ``"tokens"`` or ``"samples"``."""
        if self.at_samples:
            return "samples"
        return "step" if self.every_n_tokens is None else "tokens"

    def due(self, before: Trained, now: Trained) -> bool:
        """Whether a mark was reached after ``before`` and until ``now``.

        ``UserError`` where what the marks are in is not counted.
        """
        return self.marks(before, now) > 0

    def marks(self, before: Trained, now: Trained) -> int:
        """How many marks were reached after ``before`` and until ``now``. UserError as for due."""
        return self._reached(now) - self._reached(before)

    def _reached(self, trained: Trained) -> int:
        """How many marks are reached: counts may jump over one, or over several at once."""
        count: int | None = getattr(trained, self.unit)
        if count is None:
            raise UserError(
                f"evaluations are due by the {self.unit} trained on, which are not counted; pass "
                f"{self.unit}=, over all ranks, or give every_n_steps"
            )
        if self.at_samples:
            return bisect_right(self.at_samples, count)
        every = self.every_n_tokens or self.every_n_steps
        assert every is not None
        return count // every


class TimeShare:
    """Keeps the evaluations after the base's within ``share`` of the training time.

    Training time is wall time in which nothing is evaluated. It has no clock: callers say how long
    the base took, how long training has and how long each later evaluation took, in seconds.

    The first time one is due, the documents of all later ones are chosen, so that an evaluation
    should take half of what the share allows until then. One is made where what was ``spent`` so
    far, itself and the last one, which is always made, fit into the share of the training so far.
    So the share is exceeded only where an evaluation takes longer than any before it, or where the
    run ends before the fewest documents fit.
    """

    def __init__(self, share: float) -> None:
        if not 0 < share <= 1:
            raise UserError(
                f"time_share must be above 0 and at most 1 of the training time, got {share}"
            )
        self.share = share
        self.base_seconds = 0.0  # of all documents
        self.chosen: dict[str, list[int]] | None = None  # language -> numbers of its documents
        self.cost = 0.0  # seconds of one evaluation: expected, then the most that one took
        self.made = 0
        self.spent = 0.0  # seconds of all evaluations after the base's

    def choose(
        self, documents: Mapping[str, Sequence[Document]], trained: float, last: bool
    ) -> None:
        """Choose the documents after ``trained`` seconds; ``last``: no other evaluation follows."""
        allowed = self.share * trained / (1 if last else 2)
        part = 1.0 if self.base_seconds <= allowed else allowed / self.base_seconds
        self.chosen = subsample(documents, part)
        taken = sum(
            documents[name][n].tokens for name, numbers in self.chosen.items() for n in numbers
        )
        every = sum(document.tokens for texts in documents.values() for document in texts)
        self.cost = self.base_seconds * taken / every

    def allows(self, trained: float) -> bool:
        """Whether there is time for an evaluation and for the last, after ``trained`` seconds."""
        return self.spent + 2 * self.cost <= self.share * trained

    def record(self, seconds: float) -> None:
        """Count an evaluation."""
        self.cost = max(self.cost, seconds) if self.made else seconds
        self.made += 1
        self.spent += seconds

    def state_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        vars(self).update(state)


def subsample(documents: Mapping[str, Sequence[Document]], part: float) -> dict[str, list[int]]:
    """Numbers of documents that hold at most ``part`` of all tokens, the same on every machine.

    Of each language the first ones in the order of their hashes, as large a share of its tokens as
    of any other's; but at least two documents, if it has them, as a standard error needs as many.
    """
    order = {
        language: sorted(range(len(texts)), key=lambda n: (fingerprint(texts[n]), n))
        for language, texts in documents.items()
    }
    tokens = {
        language: np.cumsum([documents[language][n].tokens for n in numbers])
        for language, numbers in order.items()
    }
    shares = {language: sums / sums[-1] for language, sums in tokens.items()}

    def counts(share: float) -> dict[str, int]:
        """How many documents of each language are the first ``share`` of its tokens."""
        return {
            language: min(len(ends), max(2, int(np.searchsorted(ends, share, side="right"))))
            for language, ends in shares.items()
        }

    def held(share: float) -> int:
        return sum(int(tokens[language][n - 1]) for language, n in counts(share).items())

    candidates = np.unique(np.concatenate([[0.0], *shares.values()]))  # ascending, as is held
    most = part * sum(int(sums[-1]) for sums in tokens.values())
    share = candidates[max(0, bisect_right(candidates, most, key=held) - 1)]
    return {language: sorted(order[language][:n]) for language, n in counts(share).items()}
