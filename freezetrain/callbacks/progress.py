"""A progress bar that counts optimizer steps, whatever an epoch is."""

from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class StepProgress(L.pytorch.callbacks.ProgressBar):
    """Optimizer steps done of ``max_steps``, the loss, tokens/s and the time left.

    On standard error, by rank 0 alone (Lightning disables the bar on the others). Tokens/s are
    there when Throughput logs them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: Progress | None = None

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
        self._bar = Progress(
            *Progress.get_default_columns()[:2],
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            speed_estimate_period=600,  # seconds; a step of a large model may take a minute
        )
        self._bar.start()
        self._bar.add_task("train", total=trainer.max_steps, completed=trainer.global_step, note="")

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._bar is not None:
            metrics = self.get_metrics(trainer, pl_module)
            loss, speed = (metrics.get(f"train/{name}") for name in ("loss", "tokens_per_second"))
            notes = [f"loss {loss:.3f}"] if isinstance(loss, float) else []
            notes += [f"{speed:,.0f} tokens/s"] if isinstance(speed, float) else []
            note = ", ".join(notes)
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step, note=note)

    def evaluating(self, done: int, total: int) -> None:
        """Say how far an evaluation is; ForgettingTracker's ``progress``."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], note=f"evaluating {done / total:.0%}")

    def _stop(self) -> None:
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
            self._bar.console.print(*args, highlight=False)
