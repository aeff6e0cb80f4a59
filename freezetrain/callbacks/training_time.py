"""How long a run takes, said once some of its steps have been measured."""

import time
from collections.abc import Callable

import lightning as L

from freezetrain.callbacks.tracker import ForgettingTracker
from freezetrain.evaluation.schedule import Trained
from freezetrain.how_long import LONG, MEASURED
from freezetrain.log_lines import duration


class TrainingTime:
    """Says once how long steps and evaluations that are left take, if over a minute.

    At the pace of some seconds of steps after the first, which compiles, allocates and connects;
    an evaluation as long as that of the base. ``say`` writes a line.
    """

    def __init__(self, trainer: L.Trainer, say: Callable[[str], None]) -> None:
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        trackers = (c for c in callbacks if isinstance(c, ForgettingTracker))
        self._tracker = next(trackers, None)
        self._evaluation = 0.0 if self._tracker is None else self._tracker.seconds  # of the base
        self._say: Callable[[str], None] | None = say
        self._first = trainer.global_step
        self._begun: float | None = None

    def after_step(self, trainer: L.Trainer) -> None:
        """An optimizer step was made."""
        if self._say is None:
            return
        step, now = trainer.global_step, time.monotonic() - self._evaluated()
        if self._begun is None:
            self._begun = now
            self._first = step
            return
        spent, steps = now - self._begun, trainer.max_steps - step
        if spent < MEASURED or step == self._first:
            return
        say, self._say = self._say, None
        training = spent / (step - self._first) * steps
        evaluations = self._evaluations_left(step, trainer.max_steps)
        evaluating = evaluations * self._evaluation
        if training + evaluating <= LONG:
            return
        text = f"training: about {duration(training)} for the {steps} steps that are left"
        if evaluations:
            many = f"{evaluations} evaluations" if evaluations > 1 else "an evaluation"
            text += f", and {duration(evaluating)} for {many}"
        say(f"{text}; shorter with fewer or shorter steps, or fewer documents that are evaluated")

    def _evaluated(self) -> float:
        return 0.0 if self._tracker is None else self._tracker.seconds

    def _evaluations_left(self, step: int, steps: int) -> int:
        """Marks after ``step`` at the pace of tokens so far; or that of the end."""
        if self._tracker is None or not self._evaluation:  # not of a run that goes on
            return 0
        trained = self._tracker.trained
        counts = (None if count is None else count * steps // step for count in trained[1:])
        return max(1, self._tracker.schedule.marks(trained, Trained(steps, *counts)))
