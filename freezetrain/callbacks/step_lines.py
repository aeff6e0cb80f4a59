"""What a log says of a run while it trains, where there is no terminal for a bar."""

from typing import Any

import lightning as L

from freezetrain.callbacks.tracker import ForgettingTracker
from freezetrain.callbacks.training_time import TrainingTime
from freezetrain.escaping import visible
from freezetrain.evaluation.history import Evaluation
from freezetrain.log_lines import LogLines, duration
from freezetrain.terminal import Terminal


class StepLines(L.Callback):
    """A line after the first step, at least every minute, after each evaluation, and at the end.

    On standard error, by rank 0 alone. Each has the time of day and says the step, the loss, the
    learning rate, tokens per second, memory and the time left, as far as CausalLM and Throughput
    have logged them; after an evaluation what was forgotten, in place of the tables of a
    ForgettingTracker.
    """

    def __init__(self) -> None:
        self._lines: LogLines | None = None
        self._tracker: ForgettingTracker | None = None
        self._table = False
        self._time: TrainingTime | None = None
        self._begin = self._step = self._evaluations = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._lines = LogLines(Terminal(stderr=True))
        self._begin = self._step = trainer.global_step
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ForgettingTracker):
                self._tracker, self._table = callback, callback.table
                callback.table = False
                self._evaluations = len(callback.history.evaluations)
        self._lines.write(f"training from step {self._step} to {trainer.max_steps}")
        self._time = None

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._say_evaluations()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self._lines is None or trainer.global_step == self._step:
            return
        first, self._step = self._step == self._begin, trainer.global_step
        self._time = self._time or TrainingTime(trainer, self._lines.write)
        self._time.after_step(trainer)
        if first or self._step == trainer.max_steps:
            self._lines.write(_step_line(trainer))
        else:
            self._lines.now_and_then(lambda: _step_line(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._say_evaluations()
        self._end()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._end()

    def evaluating(self, done: int, total: int) -> None:
        """Say how far an evaluation is; ForgettingTracker's ``progress``."""
        if self._lines is not None:
            self._lines.now_and_then(lambda: f"evaluating, {done / total:.0%} done")

    def _say_evaluations(self) -> None:
        if self._lines is None or self._tracker is None:
            return
        history = self._tracker.history
        for evaluation in history.evaluations[self._evaluations :]:
            self._lines.write(evaluation_line(evaluation, evaluation is history.evaluations[0]))
        self._evaluations = len(history.evaluations)

    def _end(self) -> None:
        if self._tracker is not None:
            self._tracker.table = self._table
        self._tracker = self._lines = None


def _step_line(trainer: L.Trainer) -> str:
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    formats = {
        "train/loss": "loss {:.4f}",
        "train/rehearsal_kl": "rehearsal KL {:.4f}",
        "train/learning_rate": "learning rate {:.3g}",
        "train/tokens_per_second": "{:,.0f} tokens/s",
        "train/memory_peak_gib": "{:.1f} GiB",
    }
    notes = [text.format(metrics[name]) for name, text in formats.items() if name in metrics]
    if "train/hours_left" in metrics:
        notes.append(f"{duration(3600 * metrics['train/hours_left'])} left")
    return ", ".join([f"step {trainer.global_step} of {trainer.max_steps}", *notes])


def evaluation_line(evaluation: Evaluation, is_base: bool) -> str:
    """What an evaluation found, in a line: nats per byte, and against the base what has changed."""
    figures = evaluation.figures
    if is_base:
        found = (f"{visible(name)} {value.nll_per_byte:.4f}" for name, value in figures.items())
        return f"evaluated at step {evaluation.step}, nats per byte: {', '.join(found)}"
    change = evaluation.forgetting
    worst, most = change.worst
    notes = [
        f"held-out languages {change.mean:+.4f} nats per byte in the mean",
        f"{visible(worst)} {most:+.4f} at worst",
    ]
    if change.target is not None and change.target_gain is not None:
        notes.append(f"{visible(change.target)} {-change.target_gain:+.4f}")
    return f"evaluated at step {evaluation.step}: {', '.join(notes)}"
