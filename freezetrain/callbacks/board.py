"""Callback that draws forgetting in TensorBoard: a chart, the plane, the final figures."""

import re
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from freezetrain.callbacks.brake import ForgettingBrake
from freezetrain.callbacks.tracker import ForgettingTracker, require_before
from freezetrain.escaping import visible
from freezetrain.evaluation import Forgetting
from freezetrain.evaluation.history import language_tag
from freezetrain.report.run import Run
from freezetrain.report.run_plots import plane_figure
from freezetrain.report.style import as_data

_WIDTH = 640  # pixels of the plane


class ForgettingBoard(L.Callback):
    """Draws what a ``ForgettingTracker`` finds in each TensorBoardLogger of the trainer.

    - In *Custom Scalars*: what each held-out language has lost, in one chart; their mean and the
      worst, in one; with a target, its gain. They are drawn from what the tracker logs.
    - In *Images*, after each evaluation: ``forgetting/plane``, the target's gain against the mean
      loss of the held-out languages, from the base on, with the brake's limit of the mean.
    - In *HParams*, at the end of training, where there are ``settings``: these beside
      ``final/mean``, ``final/worst`` and ``final/target_gain`` (nats per byte) of the model that
      the run leaves.

    It stands after its tracker and the brake. Other loggers are left alone.
    """

    def __init__(
        self,
        tracker: ForgettingTracker,
        brake: ForgettingBrake | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Say what is drawn.

        Args:
            tracker: what evaluates; another of the trainer's callbacks.
            brake: what may end training, or go back; another of them.
            settings: name -> value of what tells runs apart, nested as it may be.
        """
        self.tracker = tracker
        self.brake = brake
        self.settings = None if settings is None else dict(settings)
        self._drawn = -1  # step of the last plane

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            require_before(trainer, self, self.tracker, self.brake)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._drawn = self.tracker.history.last.step
        for logger in _boards(trainer):
            logger.experiment.add_custom_scalars(self._layout())

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._draw(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._draw(trainer)  # the tracker may have evaluated once more
        if self.settings is None:
            return
        model = self.tracker.history.last if self.brake is None else self.brake.model
        final = final_figures(model.forgetting)
        for logger in _boards(trainer):
            logger.log_hyperparams(visible_settings(self.settings), final, step=model.step)

    def _layout(self) -> dict[str, dict[str, list[Any]]]:
        """Category -> chart -> its kind and the tags in it, as regular expressions."""
        base = self.tracker.history.base.forgetting

        def chart(*tags: str) -> list[Any]:
            return ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]

        charts = {
            "loss of each held-out language, nats per byte": chart(
                *(language_tag(language, "delta_nll_per_byte") for language in base.languages)
            ),
            "mean and worst loss, nats per byte": chart("forgetting/mean", "forgetting/worst"),
        }
        if base.target is not None:
            gain = f"gain of {visible(base.target)}, nats per byte"
            charts[gain] = chart("forgetting/target_gain")
        return {"forgetting": charts}

    def _draw(self, trainer: L.Trainer) -> None:
        history = self.tracker.history
        if history.last.step == self._drawn or history.target is None:
            return
        self._drawn = history.last.step
        boards = _boards(trainer)
        if not boards:
            return
        run = Run("this run", history, brake=None if self.brake is None else self.brake.brake)
        figure = plane_figure([run], _WIDTH, ground="white")
        for logger in boards:
            with as_data(figure):
                logger.experiment.add_figure(
                    "forgetting/plane", figure, history.last.step, close=False
                )


def final_figures(forgetting: Forgetting) -> dict[str, float]:
    """Of the model that a run leaves, as loggers call them; nats per byte."""
    final = {"final/mean": forgetting.mean, "final/worst": forgetting.worst[1]}
    if forgetting.target_gain is not None:
        final["final/target_gain"] = forgetting.target_gain
    return final


def visible_settings(settings: Any) -> Any:
    """``settings``, nested as they may be, with all names and texts visible."""
    if isinstance(settings, Mapping):
        return {visible(str(name)): visible_settings(value) for name, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [visible_settings(value) for value in settings]
    return visible(settings) if isinstance(settings, str) else settings


def _boards(trainer: L.Trainer) -> list[TensorBoardLogger]:
    """Those that write: on rank 0."""
    if not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
