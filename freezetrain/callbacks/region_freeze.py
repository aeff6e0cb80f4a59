"""Freeze a region while any LightningModule trains."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    SingleDeviceXLAStrategy,
    Strategy,
    XLAStrategy,
)
from torch import nn

from freezetrain.errors import UserError, near_misses
from freezetrain.freezing import Freeze, FreezeOptions
from freezetrain.freezing.engines import refuse_unsupported
from freezetrain.freezing.run import RunFreeze
from freezetrain.regions import Region


@dataclass(eq=False, repr=False)
class RegionFreeze(FreezeOptions, L.Callback):
    """Hold a region bit for bit during ``fit``, as :func:`freezetrain.freeze` does in any loop.

    ``RegionFreeze("region.safetensors", clamp=0.0)``, with the fields of :class:`FreezeOptions` as
    keywords. Works with accumulation, clipping, every precision, manual optimization and several
    optimizers, on one device, under DDP, FSDP2 (ModelParallelStrategy) and DeepSpeed ZeRO. The
    freeze starts when the optimizers exist and a checkpoint has been restored, is audited as it
    goes, verified before each checkpoint is written and at the end of training (CheckError names
    what moved), and ends with the fit, also on an exception. Checkpoints hold digests of the region
    and of its values: one resumes with the region that it was trained with. Not verified as they
    are written:
    checkpoints with ``save_weights_only=True``, about which Lightning does not ask callbacks, and
    those written once the fit has ended or failed (they still hold the digests). Lightning
    takes one callback for each module: to freeze two regions of one, give their union, ``a | b``.

    Raises UserError, before training starts, for any other strategy, a region that does not fit the
    module or its base, and a checkpoint of another region.
    """

    region: Region | str | Path
    """What is frozen, or its file, which is loaded at once."""
    module: str | None = None
    """Attribute path, in the LightningModule, of the model that the region was made for. None finds
    the one submodule that has the region's parameters."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._run = RunFreeze(self.region, self)
        self.region = self._run.region
        self._stored: dict[str, Any] | None = None

    @property
    def handle(self) -> Freeze | None:
        """The freeze while it holds."""
        return self._run.handle

    @property
    def state_key(self) -> str:
        """Two freezes of two modules keep two states in a checkpoint."""
        return self._generate_state_key(module=self.module)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._stored = None  # a checkpoint is restored after this
        if stage == "fit":
            _refuse_strategy(trainer.strategy)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The first hook by which every strategy has restored its checkpoint.
        strategy = trainer.strategy
        assert strategy.model is not None
        refuse_unsupported(strategy.model)  # with DDP around it
        self._run.begin(
            self._model(pl_module),
            trainer.optimizers,
            trainer.global_step,
            stored=self._stored,
            last_of_run=trainer.max_steps if trainer.max_steps > 0 else None,
            replicated=isinstance(strategy, DDPStrategy) and trainer.world_size > 1,
        )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._run.before_step(trainer.global_step)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.verify(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.verify(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._run.end()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._run.end()

    def state_dict(self) -> dict[str, Any]:
        return self._run.state

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Not load_state_dict: the run that wrote it may have said module= in another way.
        states = checkpoint.get("callbacks", {})
        others = {
            callback.state_key
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, RegionFreeze) and callback is not self
        }
        left = [
            state
            for key, state in states.items()
            if key.startswith(type(self).__qualname__) and key not in others
        ]
        of_region = [state for state in left if state["region"] == self._run.region.digest]
        self._stored = states.get(self.state_key, next(iter([*of_region, *left]), None))

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

    def verify(self, trainer: L.Trainer) -> None:
        """CheckError, on all ranks, if the region has moved while it was frozen."""
        if self.handle is not None:
            assert trainer.strategy.model is not None
            refuse_unsupported(trainer.strategy.model)
            self._run.verify()


def _refuse_strategy(strategy: Strategy) -> None:
    good = SingleDeviceStrategy | DDPStrategy | DeepSpeedStrategy | ModelParallelStrategy
    # Subclasses that step outside PyTorch.
    bad = SingleDeviceXLAStrategy | XLAStrategy
    if not isinstance(strategy, good) or isinstance(strategy, bad):
        raise UserError(
            f"RegionFreeze cannot guarantee a freeze under {type(strategy).__name__}: train on "
            "one device, or with DDPStrategy, ModelParallelStrategy (FSDP2) or DeepSpeedStrategy"
        )
