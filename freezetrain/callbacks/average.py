"""Callback that keeps an exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from freezetrain.callbacks.near_base import trained, wide
from freezetrain.callbacks.region_freeze import RegionFreeze, require_whole
from freezetrain.errors import UserError


class WeightAverage(WeightAveraging):
    """Lightning's WeightAveraging: average ← decay · average + (1 − decay) · weights, every step.

    In fp32, from the weights before the first step on. After each update the entries that a
    RegionFreeze holds are put back, so that they have the same bits in the average as in the
    weights; so have weights that no step has moved yet. (Polyak and Juditsky, SIAM J. Control
    Optim. 30, 1992; as used here: Tarvainen and Valpola, arXiv 1703.01780.)

    As Lightning has it, a checkpoint holds the average as ``state_dict`` and the weights as
    ``current_model_state``, and Lightning's own validation is of the average. Unlike there, the
    module keeps its own weights when training ends; ``averaged`` puts the average into it for an
    evaluation or an export.

    UserError for a decay outside (0, 1), for other strategies than one device and DDP (where
    weights are sharded, no rank has a copy to average), and on resuming a run without this average.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise UserError(f"the decay of the average must be in (0, 1), got {decay}")

        def update(average: Tensor, weights: Tensor, _: Any) -> Tensor:
            # Not decay · average + (1 − decay) · weights, which rounds also where both are equal.
            return average.sub(average - wide(weights), alpha=1 - decay)

        super().__init__(use_buffers=False, avg_fn=update)
        self.decay = decay
        self._weights: list[Tensor] | None = None  # while the average is in their place

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        require_whole(trainer.strategy, type(self).__name__, "average weights")
        self._device = trainer.strategy.root_device  # where the weights will be
        super().setup(trainer, pl_module, stage)
        assert self._average_model is not None
        self._average_model.n_averaged.fill_(1)  # 0: Lightning starts from those of the first step
        for parameter in self._average_model.parameters():
            parameter.data = wide(parameter.data)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._average_model is not None
        self._latest_update_step = trainer.global_step
        if trainer.global_step == 0:  # they may have been rounded, or set to a value, since setup
            self._average_model.module.load_state_dict(pl_module.state_dict())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        before = self._latest_update_step
        super().on_train_batch_end(trainer, pl_module, *args)
        if self._latest_update_step > before:
            assert self._average_model is not None
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, RegionFreeze):  # now: another may look before its turn
                    callback.put_into(self._average_model.module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the weights as they are: a checkpoint may still be saved."""

    @contextmanager
    def averaged(self, module: L.LightningModule) -> Iterator[None]:
        """The module's weights are the average here, and come back bit for bit.

        Call it on every rank, also once training has ended, with the module that was trained.
        UserError before a fit.
        """
        if self._average_model is None:
            raise UserError("there is no average before a fit: train first")
        self._swap_models(module)
        try:
            yield
        finally:
            self._swap_models(module)

    @torch.no_grad()
    def _swap_models(self, pl_module: L.LightningModule) -> None:
        # Lightning's own exchange would leave an average that was rounded to the weights' type.
        parameters = list(pl_module.parameters())
        if self._weights is None:
            self._weights = [parameter.detach().clone() for parameter in parameters]
            self._copy_average_to_current(pl_module)
            return
        for parameter, weights in zip(parameters, self._weights, strict=True):
            parameter.copy_(weights)
        self._weights = None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "decay": self.decay}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: ``on_load_checkpoint`` and ``on_train_start`` have it all."""

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        state = checkpoint["callbacks"].get(self.state_key)
        if state is None:
            raise UserError(
                f"the run resumes at step {checkpoint['global_step']} from a checkpoint without an "
                "average of weights; start anew, or resume without the average"
            )
        if state["decay"] != self.decay:
            raise UserError(
                f"the checkpoint's run averages weights with decay {state['decay']}, got "
                f"{self.decay}; resume with the same"
            )
        if "average" in state:  # as freezetrain 0.1 kept it: of the trained parameters, by name
            assert self._average_model is not None
            self._average_model.module.load_state_dict(pl_module.state_dict())
            averages = dict(trained(self._average_model.module))
            for name, average in state["average"].items():
                averages[name].data.copy_(average)
        else:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
