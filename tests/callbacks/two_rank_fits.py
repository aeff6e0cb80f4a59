"""Fits on two ranks of real engines: a stop that one rank is told of, and an average of weights."""

import os
import signal
from pathlib import Path

import torch
from extras_module import EachStep, Module, fit
from frozen_reference import TinyLM, mixed_region
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from freezetrain.callbacks import RegionFreeze, StopOnSignal, WeightAverage
from freezetrain.errors import Preempted
from freezetrain.training.engines import DeepSpeed

DECAY = 0.7


class Distributed(Module):
    """Sharded under FSDP2; keeps the weights of each step; rank 1 may get a signal in batch 4."""

    def __init__(self, signalled: bool = False) -> None:
        super().__init__()
        self.signalled = signalled
        self.course = [self.whole()]

    def configure_model(self) -> None:
        if getattr(self, "device_mesh", None) is not None:
            for part in (self.wrapped.up, self.wrapped):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        if self.signalled and batch_idx == 4 and self.global_rank == 1:
            os.kill(os.getpid(), signal.SIGUSR2)
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if batch_idx % 2:
            self.course.append(self.whole())

    def whole(self) -> dict[str, Tensor]:
        return {
            name: value.full_tensor() if hasattr(value, "full_tensor") else value
            for name, value in self.weights().items()
        }


def strategy(engine: str) -> Strategy | str:
    if engine == "ddp":
        return "ddp"
    if engine == "fsdp2":
        return ModelParallelStrategy(
            data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo"
        )
    config = {
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": int(engine[-1])},
    }
    return DeepSpeed(config=config, process_group_backend="gloo")


def train(engine: str, module: Distributed, *callbacks, **options) -> Distributed:
    freeze = RegionFreeze(mixed_region(TinyLM()), check_base=False)
    options |= {"devices": 2, "strategy": strategy(engine)}
    return fit(freeze, *callbacks, module=module, **options)


def stop_and_go_on(rank: int, world: int, folder: Path, engine: str) -> dict:
    """Training that is stopped and resumed, beside one that is not."""
    uninterrupted = train(engine, Distributed())
    stopped, save = Distributed(signalled=True), EachStep(folder / "checkpoints")
    said = "nothing"
    try:
        train(engine, stopped, StopOnSignal(), save)
    except Preempted as error:
        said = str(error)
    checkpoint = folder / "checkpoints" / "step=3.ckpt"
    again = train(
        engine, Distributed(), StopOnSignal(), EachStep(folder / "again"), ckpt_path=checkpoint
    )
    resumed = again.whole()
    return {
        "said": said,
        "seen": stopped.seen,
        "saved": save.saved,
        "seen again": again.seen,
        "differ": [n for n, v in uninterrupted.whole().items() if not torch.equal(v, resumed[n])],
    }


def average(rank: int, world: int, folder: Path) -> dict:
    """Averages under DDP, of one fit and of a resumed one; the weights of each step."""
    whole, first, resumed = (WeightAverage(DECAY) for _ in range(3))
    module = train("ddp", Distributed(), whole)
    train("ddp", Distributed(), first, EachStep(folder, every=3), max_steps=3)
    again = train("ddp", Distributed(), resumed, ckpt_path=folder / "step=3.ckpt")
    weights = module.whole()
    with whole.averaged(module):
        averaged = module.whole()
    with resumed.averaged(again):
        resumed_average = again.whole()
    back = all(torch.equal(value, weights[name]) for name, value in module.whole().items())
    return {
        "course": module.course,
        "averaged": averaged,
        "resumed": resumed_average,
        "weights came back": back,
    }
