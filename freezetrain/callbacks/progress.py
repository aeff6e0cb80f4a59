"""A progress bar that counts optimizer steps, whatever an epoch is."""

from collections.abc import Iterable
from typing import Any

import lightning as L
from rich.console import RenderableType
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from freezetrain.callbacks.tracker import ForgettingTracker
from freezetrain.callbacks.training_time import TrainingTime
from freezetrain.evaluation import Evaluation
from freezetrain.evaluation.watch import TABLE_ROWS
from freezetrain.tables import Table
from freezetrain.terminal import Terminal

_OTHER_LINES = 12  # of the table without held-out languages, and the bar below it


class StepProgress(L.pytorch.callbacks.ProgressBar):
    """Optimizer steps done of ``max_steps``, the loss, tokens/s and the time left.

    On standard error, by rank 0 alone (Lightning disables the bar on the others). Tokens/s are
    there when Throughput logs them. In a terminal the latest table of a ForgettingTracker stands
    above the bar, each in the place of the one before; elsewhere the tracker prints each of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: Progress | None = None
        self._tracker: ForgettingTracker | None = None  # whose table is shown here
        self._time: TrainingTime | None = None
        self._step = 0

    @property
    def is_enabled(self) -> bool:
        """Read by LightningModule.print."""
        return self._enabled

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._enabled:
            return
        console = Terminal(stderr=True)
        if console.is_terminal:
            self._take_table(trainer)
        self._bar = _BarBelowTable(
            self._tracker,
            *Progress.get_default_columns()[:2],
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=600,  # seconds; a step of a large model may take a minute
        )
        self._bar.start()
        self._step, self._time = trainer.global_step, None
        self._bar.add_task("train", total=trainer.max_steps, completed=trainer.global_step, note="")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self._bar is not None:
            metrics = self.get_metrics(trainer, pl_module)
            loss, speed = (metrics.get(f"train/{name}") for name in ("loss", "tokens_per_second"))
            notes = [f"loss {loss:.3f}"] if isinstance(loss, float) else []
            notes += [f"{speed:,.0f} tokens/s"] if isinstance(speed, float) else []
            note = ", ".join(notes)
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step, note=note)
            if trainer.global_step > self._step:
                self._step = trainer.global_step
                self._time = self._time or TrainingTime(trainer, self._bar.console.print)
                self._time.after_step(trainer)

    def _take_table(self, trainer: L.Trainer) -> None:
        """Show the table of a tracker that would print it: the tracker's turn is after this."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ForgettingTracker) and callback.table:
                self._tracker, callback.table = callback, False
                return

    def evaluating(self, done: int, total: int) -> None:
        """Say how far an evaluation is; ForgettingTracker's ``progress``."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], note=f"evaluating {done / total:.0%}")

    def _stop(self) -> None:
        if self._tracker is not None:
            self._tracker.table = True
            self._tracker = None
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._bar is None:
            print(*args, **kwargs)
        else:
            self._bar.console.print(*args)


class _BarBelowTable(Progress):
    """A bar, and above it the latest table of ``tracker``, if there is one."""

    def __init__(self, tracker: ForgettingTracker | None, *columns: Any, **options: Any) -> None:
        self._tracker = tracker
        self._drawn: tuple[Evaluation, int, Table] | None = None  # it is asked for many times
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterable[RenderableType]:
        if self._tracker is not None and self._tracker.history.evaluations:
            yield self._table(self._tracker)
        yield from super().get_renderables()

    def _table(self, tracker: ForgettingTracker) -> Table:
        last = tracker.history.last
        rows = max(
            1, min(TABLE_ROWS, self.console.height - _OTHER_LINES)
        )  # else the bar is cut off
        if self._drawn is None or self._drawn[0] is not last or self._drawn[1] != rows:
            self._drawn = last, rows, tracker.latest_table(rows)
        return self._drawn[2]
