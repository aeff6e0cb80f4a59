"""When the held-out languages are evaluated: after so many steps, tokens or samples."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from freezetrain.errors import UserError

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
        return self._reached(now) > self._reached(before)

    def _reached(self, trained: Trained) -> int:
        """How many marks are reached: counts may jump over one, or over several at once."""
        count = getattr(trained, self.unit)
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
