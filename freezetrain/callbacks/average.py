"""An exponential moving average of the weights, which often does better than the last of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    SingleDeviceXLAStrategy,
    XLAStrategy,
)
from torch import Tensor, nn
from torch.distributed.checkpoint import load
from torch.distributed.tensor import DTensor

from freezetrain.callbacks.near_base import trained, wide
from freezetrain.callbacks.region_freeze import RegionFreeze
from freezetrain.errors import UserError
from freezetrain.freezing.fsdp import reshard

_PREFIX = "weight_average."  # of its tensors in a sharded checkpoint


class WeightAverage(L.Callback):
    """Keeps average ← decay · average + (1 − decay) · weights, after each optimizer step.

    In fp32, from the weights before the first step on, of the trainable parameters; what is not
    trained is its own average. Each rank averages what it holds: all on one device and under DDP,
    its shard under FSDP2 (ModelParallelStrategy). Frozen entries stay exact: the average of a
    value and itself is that value, bit for bit, and where a freeze begins later than the run it
    takes the values that are then frozen. (Polyak and Juditsky, SIAM J. Control Optim. 30, 1992;
    as used here: Tarvainen and Valpola, arXiv 1703.01780.)

    The average is kept in checkpoints, so that a resumed run goes on with it. ``averaged`` puts it
    into the module for an evaluation or an export. UserError for any other strategy: DeepSpeed
    lays the weights out in its own way.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise UserError(f"the decay of the average must be in (0, 1), got {decay}")
        self.decay = decay
        self._averages: dict[str, Tensor] = {}
        self._step = 0
        self._seen: list[object] = []  # freezes whose values have been taken

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._averages = {}  # a checkpoint is restored after this
        good = SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy
        bad = DeepSpeedStrategy | SingleDeviceXLAStrategy | XLAStrategy  # subclasses of these
        strategy = trainer.strategy
        if isinstance(strategy, bad) or (stage == "fit" and not isinstance(strategy, good)):
            raise UserError(
                f"WeightAverage cannot average weights under {type(strategy).__name__}: train on "
                "one device, with DDPStrategy or ModelParallelStrategy (FSDP2), or without it"
            )
        if (
            isinstance(strategy, ModelParallelStrategy)
            and not strategy._save_distributed_checkpoint
        ):
            raise UserError(
                "WeightAverage saves each rank's shard of the average and got save_distributed_"
                "checkpoint=False: leave it out of the strategy"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step, self._seen = trainer.global_step, []
        # Restored, on one device and under DDP, before the weights were moved to their device.
        weights = {name: _local(parameter) for name, parameter in trained(pl_module)}
        self._averages = {n: value.to(weights[n].device) for n, value in self._averages.items()}

    @torch.no_grad()
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._averages:  # not before: a freeze may set its region to a value first
            self._averages = {
                name: wide(_local(p).detach()).clone() for name, p in trained(pl_module)
            }

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step == self._step:
            return  # in the midst of accumulation
        self._step = trainer.global_step
        reshard(pl_module)
        for name, parameter in trained(pl_module):
            average = self._averages[name]
            # Not lerp: it makes 0.0 of two times -0.0.
            average.sub_(average - wide(_local(parameter)), alpha=1 - self.decay)
        self._take_frozen(trainer, pl_module)

    def _take_frozen(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Where a freeze has begun since the last step: its entries are constants from now on."""
        names = {id(parameter): name for name, parameter in trained(pl_module)}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            handle = callback.handle if isinstance(callback, RegionFreeze) else None
            if handle is None or any(handle is one for one in self._seen):
                continue
            self._seen.append(handle)
            for shard in handle.shards:
                if id(shard.owner) in names:
                    average = self._averages[names[id(shard.owner)]]
                    shard.entries.write(average, wide(shard.read()))

    @contextmanager
    def averaged(self, module: L.LightningModule) -> Iterator[None]:
        """The module's weights are the average here, and come back bit for bit.

        Call it on every rank, also once training has ended, with the module that was trained.
        UserError before the first step.
        """
        if not self._averages:
            raise UserError("there is no average before the first step: train first")
        reshard(module)
        kept = {name: _local(p).detach().clone() for name, p in trained(module)}
        try:
            self._put(module, self._averages)
            yield
        finally:
            self._put(module, kept)

    @torch.no_grad()
    def _put(self, module: nn.Module, values: dict[str, Tensor]) -> None:
        reshard(module)  # what a forward pass has gathered would go stale
        for name, parameter in trained(module):
            _local(parameter).copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        return {"decay": self.decay, "average": dict(self._averages)}

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Under FSDP2 the average is saved as the weights are: by each rank its own shard."""
        if isinstance(trainer.strategy, ModelParallelStrategy) and self._averages:
            checkpoint["callbacks"][self.state_key]["average"] = {}
            checkpoint["state_dict"].update(self._sharded(pl_module))

    @torch.no_grad()
    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Not later: where nothing is left to train, no other hook is called.
        stored = checkpoint["callbacks"].get(self.state_key)
        if stored is None:
            raise UserError(
                f"the run resumes at step {checkpoint['global_step']} from a checkpoint without an "
                "average of weights; start anew, or resume without the average"
            )
        if stored["decay"] != self.decay:
            raise UserError(
                f"the checkpoint's run averages weights with decay {stored['decay']}, got "
                f"{self.decay}; resume with the same"
            )
        self._averages = stored["average"]
        if isinstance(trainer.strategy, ModelParallelStrategy):
            self._averages = {
                name: torch.empty_like(wide(_local(p))) for name, p in trained(pl_module)
            }
            assert trainer.ckpt_path is not None
            load({"state_dict": self._sharded(pl_module)}, checkpoint_id=Path(trainer.ckpt_path))

    def _sharded(self, pl_module: L.LightningModule) -> dict[str, Tensor]:
        reshard(pl_module)
        return {
            _PREFIX + name: _like(parameter, self._averages[name])
            for name, parameter in trained(pl_module)
        }


def _local(parameter: nn.Parameter) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _like(parameter: nn.Parameter, local: Tensor) -> Tensor:
    """``local`` placed over the ranks as ``parameter`` is."""
    if not isinstance(parameter, DTensor):
        return local
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
