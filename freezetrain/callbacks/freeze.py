"""Freeze a region while any LightningModule trains."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    SingleDeviceStrategy,
    SingleDeviceXLAStrategy,
    Strategy,
    XLAStrategy,
)
from torch import nn

from freezetrain.errors import UserError, near_misses
from freezetrain.freezing import Freeze, freeze
from freezetrain.freezing.engines import refuse_unsupported
from freezetrain.regions import Region


class RegionFreeze(L.Callback):
    """Hold a region bit for bit during ``fit``, as :func:`freezetrain.freeze` does in any loop.

    Works with accumulation, clipping, every precision and manual optimization, on one device and
    under DDP. The freeze starts when the optimizer exists and a checkpoint has been restored, is
    verified before each checkpoint is written and at the end of training (CheckError names the
    parameters that moved), and ends with the fit, also on an exception. Checkpoints hold digests
    of the region and of its values: one resumes with the region that it was trained with.
    Lightning does not ask callbacks about checkpoints with ``save_weights_only=True``: those are
    not verified as they are written.

    Raises UserError, before training starts, for any other strategy, more than one optimizer, a
    region that does not fit the module or its base, and a checkpoint of another region.
    """

    def __init__(
        self, region: Region | str | Path, module: str | None = None, check_base: bool = True
    ) -> None:
        """Say what is frozen.

        Args:
            region: the region, or its file.
            module: attribute path, in the LightningModule, of the model that the region was made
                for; None finds the one submodule that has the region's parameters.
            check_base: refuse a model that is not the region's base. Not looked at on resuming
                a frozen run, whose trainable entries have moved since.
        """
        self.region = region if isinstance(region, Region) else Region.load(region)
        self.module = module
        self.check_base = check_base
        self.handle: Freeze | None = None
        self._resumed: dict[str, str] = {}
        self._state: dict[str, str] = {}

    @property
    def state_key(self) -> str:
        """Two freezes of two modules keep two states in a checkpoint."""
        return self._generate_state_key(module=self.module)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._resumed = {}  # a checkpoint is restored after this
        if stage == "fit":
            _refuse_strategy(trainer.strategy)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise UserError(
                f"RegionFreeze needs one optimizer, {type(pl_module).__name__} has "
                f"{len(trainer.optimizers)}: give all parameters to one, or call "
                "freezetrain.freeze for each in on_fit_start"
            )
        if self._resumed and self._resumed["region"] != self.region.digest:
            raise UserError(
                f"the checkpoint was trained with the region {self._resumed['region'][:12]} "
                f"frozen, got {self.region.digest[:12]}: resume with the same region, or start "
                "a new run from its weights"
            )
        assert trainer.strategy.model is not None
        refuse_unsupported(trainer.strategy.model)  # with DDP around it
        handle = freeze(
            self._model(pl_module),
            trainer.optimizers[0],
            self.region,
            check_base=self.check_base and not self._resumed,
        )
        if self._resumed and self._resumed["values"] != handle.digest:
            handle.remove()
            raise UserError(
                "the restored values of the frozen entries are not those that the checkpoint was "
                "trained with: resume with the precision and the weights of that run"
            )
        self.handle = handle
        self._state = {"region": self.region.digest, "values": handle.digest}

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._verify(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._verify(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._end()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._end()

    def state_dict(self) -> dict[str, str]:
        return self._state

    def load_state_dict(self, state_dict: dict[str, str]) -> None:
        self._resumed = dict(state_dict)

    def _model(self, pl_module: L.LightningModule) -> nn.Module:
        if self.module is None:
            return pl_module
        try:
            return pl_module.get_submodule(self.module)
        except AttributeError as error:
            known = [name for name, _ in pl_module.named_modules()]
            raise UserError(
                f"{type(pl_module).__name__} has no module {self.module!r}"
                + near_misses(self.module, known)
            ) from error

    def _verify(self, trainer: L.Trainer) -> None:
        if self.handle is not None:
            assert trainer.strategy.model is not None
            refuse_unsupported(trainer.strategy.model)
            self.handle.verify()

    def _end(self) -> None:
        if self.handle is not None:
            self.handle.remove()
            self.handle = None


def _refuse_strategy(strategy: Strategy) -> None:
    good = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    # Subclasses of those two that shard, or step outside PyTorch.
    bad = isinstance(strategy, DeepSpeedStrategy | SingleDeviceXLAStrategy | XLAStrategy)
    if not good or bad:
        raise UserError(
            f"RegionFreeze cannot guarantee a freeze under {type(strategy).__name__}: train on "
            "one device or with strategy='ddp'"
        )
