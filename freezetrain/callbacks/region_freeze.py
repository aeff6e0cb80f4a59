"""Freeze a region while any LightningModule trains."""

from collections.abc import Mapping
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
from torch import Tensor, nn

from freezetrain.errors import UserError, near_misses
from freezetrain.freezing import Freeze
from freezetrain.freezing.engines import refuse_unsupported
from freezetrain.freezing.resume import RunFreeze
from freezetrain.regions import Region


class RegionFreeze(L.Callback):
    """Hold a region bit for bit during ``fit``, as :func:`freezetrain.freeze` does in any loop.

    Works with accumulation, clipping, every precision and manual optimization, on one device,
    under DDP, FSDP2 (ModelParallelStrategy) and DeepSpeed ZeRO. The freeze starts when the
    optimizer exists and a checkpoint has been restored, is audited as it goes, verified before
    each checkpoint is written and at the end of training (CheckError names what moved), and ends
    with the fit, also on an exception. Checkpoints hold digests of the region and of its values:
    one resumes with the region that it was trained with. Not verified as they are written:
    checkpoints with ``save_weights_only=True``, about which Lightning does not ask callbacks, and
    those written once the fit has ended or failed (they still hold the digests). Lightning
    takes one callback for each module: to freeze two regions of one, give their union, ``a | b``.

    Raises UserError, before training starts, for any other strategy, more than one optimizer, a
    region that does not fit the module or its base, and a checkpoint of another region.
    """

    def __init__(
        self,
        region: Region | str | Path,
        module: str | None = None,
        *,
        check_base: bool = True,
        clamp: float | None = None,
        base: str | Path | Mapping[str, Tensor] | None = None,
        audit_every: int = 100,
        first_step: int = 0,
        last_step: int | None = None,
        other_region: bool = False,
    ) -> None:
        """Say what is frozen, and when.

        Args:
            region: the region, or its file.
            module: attribute path, in the LightningModule, of the model that the region was made
                for; None finds the one submodule that has the region's parameters.
            check_base: refuse a model that is not the region's base. Not looked at on resuming
                a frozen run, whose trainable entries have moved since.
            clamp: set the frozen entries to this value first, when the freeze begins. A callback
                that is to see the base as it was (ForgettingTracker) stands before this one.
            base: folder or weights of the base as it is stored, for engines that round it, see
                :func:`freezetrain.freeze`.
            audit_every: optimizer steps between audits.
            first_step: optimizer steps before the freeze begins. It begins and ends between two
                batches, also where manual optimization makes several steps in one.
            last_step: optimizer steps after which it ends; None: it lasts.
            other_region: resume a checkpoint that was trained with another region.
        """
        self._run = RunFreeze(
            region,
            check_base=check_base,
            clamp=clamp,
            base=base,
            audit_every=audit_every,
            first_step=first_step,
            last_step=last_step,
            other_region=other_region,
        )
        self.module = module
        self._stored: dict[str, Any] | None = None

    @property
    def region(self) -> Region:
        """What is frozen."""
        return self._run.region

    @property
    def handle(self) -> Freeze | None:
        """The freeze while it holds."""
        return self._run.handle

    @property
    def from_the_start(self) -> bool:
        """Whether the region is frozen as it is in the base, from the first step on."""
        return self._run.from_the_start

    @property
    def state_key(self) -> str:
        """Two freezes of two modules keep two states in a checkpoint."""
        return self._generate_state_key(module=self.module)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._stored = None  # a checkpoint is restored after this
        if stage == "fit":
            _refuse_strategy(trainer.strategy)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise UserError(
                f"RegionFreeze needs one optimizer, {type(pl_module).__name__} has "
                f"{len(trainer.optimizers)}: give all parameters to one, or call "
                "freezetrain.freeze for each in on_train_start"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The first hook by which every strategy has restored its checkpoint.
        strategy = trainer.strategy
        assert strategy.model is not None
        refuse_unsupported(strategy.model)  # with DDP around it
        self._run.begin(
            self._model(pl_module),
            trainer.optimizers[0],
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
        others = {c.state_key for c in _all(trainer)} - {self.state_key}
        left = [
            state
            for key, state in states.items()
            if key.startswith(type(self).__qualname__) and key not in others
        ]
        mine = [state for state in left if state["region"] == self._run.state["region"]]
        self._stored = states.get(self.state_key, next(iter([*mine, *left]), None))

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


def _all(trainer: L.Trainer) -> list[RegionFreeze]:
    return [c for c in trainer.callbacks if isinstance(c, RegionFreeze)]  # type: ignore[attr-defined]


def _refuse_strategy(strategy: Strategy) -> None:
    good = SingleDeviceStrategy | DDPStrategy | DeepSpeedStrategy | ModelParallelStrategy
    # Subclasses that step outside PyTorch.
    bad = SingleDeviceXLAStrategy | XLAStrategy
    if not isinstance(strategy, good) or isinstance(strategy, bad):
        raise UserError(
            f"RegionFreeze cannot guarantee a freeze under {type(strategy).__name__}: train on "
            "one device, or with DDPStrategy, ModelParallelStrategy (FSDP2) or DeepSpeedStrategy"
        )
