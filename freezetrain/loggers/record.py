"""Callback that tells every logger the settings of a run and, at its end, the final figures."""

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from freezetrain.callbacks.board import final_figures, visible_settings
from freezetrain.evaluation import Forgetting


class RunRecord(L.Callback):
    """Logs ``settings`` as hyperparameters, and ``final/...`` once the model is chosen.

    It stands last: ``left()`` says which evaluation the model that the run leaves has, with its
    step; None: none was made. TensorBoard takes both together, at the end.
    """

    def __init__(
        self, settings: Mapping[str, Any], left: Callable[[], tuple[int, Forgetting] | None]
    ) -> None:
        self.settings = visible_settings(settings)
        self.left = left
        self._done = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in _but_boards(trainer):
            logger.log_hyperparams(self.settings)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._done = True
        if (left := self.left()) is None:
            return
        step, final = left[0], final_figures(left[1])
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(self.settings, final, step=step)
            else:
                logger.log_metrics(final, step=step)

    def ensure(self, trainer: L.Trainer) -> None:
        """Log them after a fit with nothing left to do: the run was killed after its last step."""
        if not self._done:
            self.on_train_end(trainer, trainer.lightning_module)


def _but_boards(trainer: L.Trainer) -> list[Logger]:
    return [logger for logger in trainer.loggers if not isinstance(logger, TensorBoardLogger)]
