"""Pull weights to the base while any LightningModule trains."""

from dataclasses import dataclass
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy

from freezetrain.callbacks.region_freeze import refuse_strategy
from freezetrain.callbacks.tracker import log_now
from freezetrain.freezing import Pull, PullOptions
from freezetrain.freezing.base_pull import in_words_of_a_pull
from freezetrain.freezing.engines import refuse_unsupported


@dataclass(eq=False, repr=False)
class BasePull(PullOptions, L.Callback):
    """Pull the weights to the base after each step, as :func:`freezetrain.pull` does in any loop.

    On one device, under DDP, FSDP2 (ModelParallelStrategy) and DeepSpeed ZeRO, in every precision,
    beside a RegionFreeze in either order. The base is read from its files at each start, so that
    a run that goes on from a checkpoint is pulled to where it began. The distance to the base,
    ‖θ − θ₀‖ / ‖θ₀‖, goes to the loggers for each kind of parameter as
    ``pull/model.layers.N.mlp.up_proj.weight``.

    Raises UserError, before training starts, for what ``freezetrain.pull`` refuses and for any
    other strategy.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.handle: Pull | None = None
        """The pull while it acts."""
        self.distances: dict[str, float] = {}
        """As last looked at, at the latest at the end of training; empty before the first look."""
        self._logged = 0  # optimizer steps made when the distance was looked at last

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            refuse_strategy(trainer.strategy, type(self).__name__, "a pull")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The first hook by which every strategy has restored its checkpoint.
        strategy = trainer.strategy
        assert strategy.model is not None
        with in_words_of_a_pull():
            refuse_unsupported(strategy.model, masked=False)  # with DDP around it
        self._end()
        replicated = isinstance(strategy, DDPStrategy) and trainer.world_size > 1
        self.handle = self.begin(pl_module, trainer.optimizers, replicated)
        self._logged = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if self.is_due(trainer.global_step, self._logged):
            self._log(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.handle is None:
            return
        if trainer.global_step > self._logged:
            self._log(trainer)
        else:  # the weights may have been put back since
            self.distances = self.handle.distances()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._end()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._end()

    def _log(self, trainer: L.Trainer) -> None:
        if self.handle is None:
            return
        self._logged = trainer.global_step
        self.distances = self.handle.distances()
        log_now(trainer, self.handle.scalars(self.distances), trainer.global_step)

    def _end(self) -> None:
        if self.handle is not None:
            self.handle.remove()
        self.handle = None
