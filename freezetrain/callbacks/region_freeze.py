"""Freeze a region while any LightningModule trains."""

from collections.abc import Iterator
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
from torch.optim.swa_utils import AveragedModel

from freezetrain.errors import UserError
from freezetrain.freezing import Freeze, FreezeOptions
from freezetrain.freezing.engines import refuse_unsupported
from freezetrain.freezing.run import RunFreeze, find_module
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
    are written: those written once the fit has ended or failed (they still hold the digests).
    Lightning takes one callback for each module: to freeze two regions of one, give their union,
    ``a | b``.

    Averages of weights: Lightning's WeightAveraging, EMAWeightAveraging and
    StochasticWeightAveraging, and what is derived from them, get the frozen entries after each
    update, wherever they stand in the list of callbacks, on one device and under DDP. What is
    verified is the ``state_dict`` that is about to be written, and the module once all callbacks
    have ended: an average of another making that moved a frozen entry ends the run with a
    CheckError; give it ``handle.put_into``.

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
        self._last_look: _LastLook | None = None

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
            refuse_strategy(trainer.strategy, type(self).__name__, "a freeze")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The first hook by which every strategy has restored its checkpoint.
        strategy = trainer.strategy
        assert strategy.model is not None
        refuse_unsupported(strategy.model)  # with DDP around it
        self._refuse_averages(trainer)
        self._last_look = _LastLook(self, trainer, pl_module)
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

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._put_into_averages(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._put_into_averages(trainer)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._put_into_averages(trainer)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.verify(trainer)
        self._put_into_averages(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.verify(trainer)
        self._put_into_averages(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._end()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._end()

    def _end(self) -> None:
        self._run.end()
        if self._last_look is not None:
            self._last_look.remove()
            self._last_look = None

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

    def put_into(self, average: nn.Module) -> None:
        """Give ``average``, a copy of the LightningModule, what is frozen now, if anything is."""
        if self.handle is not None:
            self.handle.put_into(self._model(average))

    def _put_into_averages(self, trainer: L.Trainer) -> None:
        if self.handle is not None:
            for _, average in _averages(trainer):
                self.put_into(average)

    def _refuse_averages(self, trainer: L.Trainer) -> None:
        for callback, _ in _averages(trainer):
            require_whole(trainer.strategy, f"RegionFreeze beside {callback}", "average weights")

    def _model(self, pl_module: nn.Module) -> nn.Module:
        """What the region is of, in the module that is trained or in a copy of it."""
        return find_module(pl_module, self.module)

    def verify(self, trainer: L.Trainer) -> None:
        """CheckError, on all ranks, if the region has moved while it was frozen."""
        if self.handle is not None:
            assert trainer.strategy.model is not None
            refuse_unsupported(trainer.strategy.model)
            self._run.verify()


class _LastLook:
    """Verifies what a strategy is given to write, and the module once all hooks have ended.

    Callbacks after RegionFreeze, and the module, may change both in hooks of the same name.
    Lightning asks the strategy last, and about checkpoints of weights alone too.
    """

    def __init__(
        self, freeze: RegionFreeze, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> None:
        self._strategy = strategy = trainer.strategy
        save, end = strategy.save_checkpoint, strategy.on_train_end
        model = freeze._model(pl_module)
        prefix = "" if model is pl_module else f"{freeze.module}."

        def save_checkpoint(checkpoint: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            if freeze.handle is not None:
                freeze.verify(
                    trainer
                )  # those of weights alone come here without on_save_checkpoint
                state = checkpoint.get("state_dict") or {}
                named = {
                    n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)
                }
                freeze.handle.verify_checkpoint(named)
            save(checkpoint, *args, **kwargs)

        def on_train_end() -> None:
            freeze.verify(trainer)
            end()

        self._hooks = {"save_checkpoint": save_checkpoint, "on_train_end": on_train_end}
        vars(strategy).update(self._hooks)

    def remove(self) -> None:
        """Let the strategy be as it was. Of several, the first that ends takes all away."""
        for name in self._hooks:
            vars(self._strategy).pop(name, None)


def _averages(trainer: L.Trainer) -> Iterator[tuple[str, nn.Module]]:
    """Name of a callback that keeps a copy of the module, as Lightning's two do, and the copy."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        average = getattr(callback, "_average_model", None)
        if isinstance(average, AveragedModel):
            average = average.module
        if isinstance(average, nn.Module):
            yield type(callback).__name__, average


def require_whole(strategy: Strategy, callback: str, purpose: str) -> None:
    """UserError, in the name of ``callback``, where a rank does not hold all weights.

    ``purpose``: what the callback needs them for, as "average weights".
    """
    good = SingleDeviceStrategy | DDPStrategy
    bad = DeepSpeedStrategy | SingleDeviceXLAStrategy | XLAStrategy  # subclasses of these
    if not isinstance(strategy, good) or isinstance(strategy, bad):
        raise UserError(
            f"{callback} cannot {purpose} under {type(strategy).__name__}: train on one device or "
            "with DDPStrategy, or without it"
        )


def refuse_strategy(strategy: Strategy, callback: str, held: str) -> None:
    """UserError, in the name of ``callback``, where ``held`` ("a freeze") cannot be guaranteed."""
    good = SingleDeviceStrategy | DDPStrategy | DeepSpeedStrategy | ModelParallelStrategy
    # Subclasses that step outside PyTorch.
    bad = SingleDeviceXLAStrategy | XLAStrategy
    if not isinstance(strategy, good) or isinstance(strategy, bad):
        raise UserError(
            f"{callback} cannot guarantee {held} under {type(strategy).__name__}: train on "
            "one device, or with DDPStrategy, ModelParallelStrategy (FSDP2) or DeepSpeedStrategy"
        )
