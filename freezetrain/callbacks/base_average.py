"""Weights between the base's and the trained ones: what a run leaves, part of the way back."""

from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch
from torch import Tensor

from freezetrain.callbacks.trained import base_weights, require_whole, trained, wide
from freezetrain.errors import UserError


class BaseAverage(L.Callback):
    """Holds the base, to give base + share · (trained − base) when it is asked for.

    WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903. The base is what the module holds at
    ``setup``, before a checkpoint is restored; its trainable parameters are copied to the CPU.
    An entry that has not moved keeps its bits. Training itself does not change.

    UserError for a share outside (0, 1), and for other strategies than one device and DDP.
    """

    def __init__(self, share: float) -> None:
        if not 0 < share < 1:
            raise UserError(f"the share of the trained weights must be in (0, 1), got {share}")
        self.share = share
        self._base: dict[str, Tensor] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            require_whole(trainer.strategy, type(self).__name__)
            self._base = base_weights(pl_module)

    @contextmanager
    def averaged(self, module: L.LightningModule) -> Iterator[None]:
        """The module's weights are the average here, and come back bit for bit.

        Call it on every rank, also once training has ended, with the module that was trained.
        UserError before a fit.
        """
        if not self._base:
            raise UserError("there is no base before a fit to average with: train first")
        kept = base_weights(module)
        try:
            with torch.no_grad():
                for name, parameter in trained(module):
                    parameter.copy_(self._between(name, parameter))
            yield
        finally:
            with torch.no_grad():
                for name, parameter in trained(module):
                    parameter.copy_(kept[name])

    def _between(self, name: str, parameter: Tensor) -> Tensor:
        base = self._base[name].to(parameter.device, parameter.dtype)
        between = wide(base) + self.share * (wide(parameter) - wide(base))
        # -0.0 plus 0.0 is 0.0, and what is infinite less itself is no number.
        return torch.where(parameter == base, wide(parameter), between)
