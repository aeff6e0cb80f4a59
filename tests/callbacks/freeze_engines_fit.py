"""RegionFreeze and BasePull under Lightning's strategies; only ranks import it."""

from pathlib import Path

import lightning as L
import pytest
import torch
import torch.distributed as dist
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from frozen_reference import MAX_NORM, TinyLM, adamw, loss_of, mixed_region, steps_of_batches
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from freezetrain.callbacks import BasePull, RegionFreeze
from freezetrain.errors import UserError

STRENGTH = 10.0  # of the pull to the base: a tenth of the way in each step


class OnCPU(DeepSpeedStrategy):
    """Lightning refuses DeepSpeed without CUDA; DeepSpeed itself runs on gloo."""

    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0)


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.wrapped = TinyLM().float()
        self.losses: list[float] = []

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            fully_shard(self.wrapped.up, mesh=self.device_mesh["data_parallel"])
            fully_shard(self.wrapped, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: Tensor) -> Tensor:
        mine = batch[self.global_rank :: self.trainer.world_size]
        loss = loss_of(self.wrapped(mine).float(), mine)
        self.losses.append(loss.item())
        return loss

    def train_dataloader(self) -> DataLoader:
        """Three steps of two batches in each of two epochs."""
        steps = steps_of_batches()[3 * self.current_epoch :][:3]
        return DataLoader([batch for batches in steps for batch in batches], batch_size=None)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adamw(self.parameters())


def strategy(engine: str) -> L.pytorch.strategies.Strategy | str:
    if engine == "ddp":
        return "ddp"
    if engine == "fsdp2":
        return ModelParallelStrategy(
            data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo"
        )
    stage, _, offload = engine.removeprefix("zero-").partition("-")
    config = {
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": int(stage), "stage3_param_persistence_threshold": 20},
    }
    if offload:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    return OnCPU(config=config, process_group_backend="gloo")


def fit(engine: str, precision: str, *callbacks: L.Callback, **options) -> L.Trainer:
    settings = {
        "accelerator": "cpu",
        "devices": 2,
        "strategy": strategy(engine),
        "precision": precision,
        "max_epochs": 2,
        "reload_dataloaders_every_n_epochs": 1,
        "gradient_clip_val": MAX_NORM,
        "accumulate_grad_batches": 2,
        "callbacks": list(callbacks),
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    checkpoint = options.pop("ckpt_path", None)
    trainer = L.Trainer(**{**settings, **options})
    trainer.fit(Module(), ckpt_path=checkpoint)
    return trainer


def whole_weights(engine: str, folder: Path) -> dict[str, Tensor]:
    """The fp32 weights that the checkpoint in ``folder`` holds."""
    if engine == "fsdp2":
        dcp_to_torch_save(folder, folder / "whole.pt")
        state = torch.load(folder / "whole.pt", weights_only=True)["state_dict"]
    else:
        state = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag="checkpoint")
    return {name.partition("wrapped.")[2]: value.clone() for name, value in state.items()}


def run(rank: int, world: int, engine: str, precision: str, folder: Path) -> dict[str, Tensor]:
    """A run, one that goes on from its middle, and with another region; the first's weights.

    Weights are pulled to the base plus 1, which stands in for a base's files.
    """
    region = mixed_region(TinyLM())
    base = {name: value.detach() + 1 for name, value in TinyLM().float().named_parameters()}
    pulled = BasePull(STRENGTH, base)
    half = ModelCheckpoint(dirpath=folder / "epochs", save_top_k=-1)
    trainer = fit(engine, precision, RegionFreeze(region, audit_every=2), pulled, half)
    losses = trainer.lightning_module.losses
    trainer.save_checkpoint(folder / "last.ckpt")
    middle = next(path for path in (folder / "epochs").iterdir() if "step=3" in path.name)
    again = BasePull(STRENGTH, base), RegionFreeze(region, audit_every=1)
    resumed = fit(engine, precision, *again, ckpt_path=middle)
    after = resumed.lightning_module.losses
    assert losses[-len(after) :] == after, (losses, after)
    assert len(after) == len(losses) // 2
    other = region.random_like(seed=5)
    with pytest.raises(UserError, match="resume with the same region"):
        fit(engine, precision, RegionFreeze(other), ckpt_path=middle)
    fit(engine, precision, RegionFreeze(other, other_region=True), ckpt_path=middle)
    dist.barrier()
    if engine == "ddp":
        return {name: p.detach() for name, p in trainer.lightning_module.wrapped.named_parameters()}
    return whole_weights(engine, folder / "last.ckpt") if rank == 0 else {}
