"""Pull weights to the base while any LightningModule trains."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from freezetrain.callbacks.region_freeze import refuse_strategy
from freezetrain.errors import UserError
from freezetrain.freezing import Pull, pull
from freezetrain.freezing.base_pull import Regions
from freezetrain.freezing.engines import refuse_unsupported


@dataclass(eq=False, repr=False)
class BasePull(L.Callback):
    """Pull the weights to the base after each step, as :func:`freezetrain.pull` does in any loop.

    On one device, under DDP, FSDP2 (ModelParallelStrategy) and DeepSpeed ZeRO, in every precision,
    beside a RegionFreeze in either order. The base is read from its files at each start, so that
    a run that goes on from a checkpoint is pulled to where it began. The distance to the base,
    ‖θ − θ₀‖ / ‖θ₀‖, goes to the loggers for each kind of parameter as
    ``pull/model.layers.*.mlp.up_proj.weight``.

    Raises UserError, before training starts, for what ``freezetrain.pull`` refuses and for any
    other strategy.
    """

    strength: float
    """λ of all weights that no region names, see :func:`freezetrain.pull`."""
    base: str | Path | Mapping[str, Tensor]
    """Folder of the base's weights, or the base's name of a parameter -> tensor."""
    regions: Regions = ()
    """λ of the entries of regions."""
    importance: Mapping[str, Tensor] | None = None
    """The base's name of a parameter -> importance of its weights, such as Fisher scores."""
    on_cpu: bool = False
    """Keep the base's values in CPU memory."""
    log_every_n_steps: int = 100
    """Optimizer steps between two looks at the distance; each is a pass over all weights."""

    def __post_init__(self) -> None:
        if self.log_every_n_steps < 1:
            raise UserError(f"log_every_n_steps must be 1 or more, got {self.log_every_n_steps}")
        self.handle: Pull | None = None
        """The pull while it acts."""
        self._logged = 0  # optimizer steps made when the distance was looked at last

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            refuse_strategy(trainer.strategy, type(self).__name__, "a pull")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The first hook by which every strategy has restored its checkpoint.
        strategy = trainer.strategy
        assert strategy.model is not None
        refuse_unsupported(strategy.model)  # with DDP around it
        self._end()
        self.handle = pull(
            pl_module,
            trainer.optimizers,
            self.strength,
            regions=self.regions,
            base=self.base,
            importance=self.importance,
            on_cpu=self.on_cpu,
            replicated=isinstance(strategy, DDPStrategy) and trainer.world_size > 1,
        )
        self._logged = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if trainer.global_step >= self._logged + self.log_every_n_steps:
            self._log(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step > self._logged:
            self._log(trainer)

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
        distances = {f"pull/{kind}": value for kind, value in self.handle.distances().items()}
        for logger in trainer.loggers:
            logger.log_metrics(distances, step=trainer.global_step)

    def _end(self) -> None:
        if self.handle is not None:
            self.handle.remove()
        self.handle = None
