"""The model that is scored, on one device or split over ranks, and how ranks share it."""

import logging
import os
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PreTrainedModel

from freezetrain.errors import UserError
from freezetrain.models import load_model, on_gpu, stored_dtype
from freezetrain.ranks import Launch
from freezetrain.recipe.optimization import Engine, Optimization
from freezetrain.recipe.sources import ModelSource
from freezetrain.scoring.partition import FullyShard, Partition, Replicated, Split
from freezetrain.training.engines import (
    cluster_environment,
    deepspeed_config,
    devices,
    kind_of,
    world_size,
)
from freezetrain.training.sharded import load_partitioned, load_sharded


def check_batch(engine: Engine, launch: Launch, batch: int) -> None:
    """UserError where ranks that share each batch would have no rows of it."""
    world = world_size(engine, launch)
    if kind_of(engine, world) in ("fsdp2", "zero-3") and batch < world:
        raise UserError(
            f"under {engine.kind} the {world} devices share the sequences of each batch, and batch "
            f"is {batch}; use {world} or more"
        )


def start_ranks(engine: Engine, launch: Launch) -> None:
    """Start the other ranks, or meet them, unless one process does it all; each rank calls this."""
    world = world_size(engine, launch)
    if world == 1 and kind_of(engine, world) in ("one", "ddp"):
        return
    for name in ("lightning.fabric", "lightning.pytorch"):  # whichever was imported last speaks
        logging.getLogger(name).setLevel(logging.WARNING)
    on_gpu = torch.cuda.is_available()
    Fabric(
        accelerator="gpu" if on_gpu else "cpu",
        devices=devices(engine, launch),
        num_nodes=launch.nodes if launch.external else 1,
        strategy=DDPStrategy(process_group_backend=None if on_gpu else "gloo"),
        plugins=[cluster_environment(launch)],
    ).launch()


def load_scored(
    source: ModelSource, engine: Engine, launch: Launch
) -> tuple[PreTrainedModel, Partition]:
    """The model as the engine wants it, and how ranks share it; each calls this once started.

    Raises UserError as load_model does, where deepspeed is asked for and not installed, and for a
    model that fsdp2 cannot read in part.
    """
    world = world_size(engine, launch)
    kind = kind_of(engine, world)
    if kind == "fsdp2":
        return _sharded(source, world)
    if kind == "zero-3":
        return _partitioned(source, engine, launch)
    model = on_gpu(load_model(source))
    return model, Partition() if world == 1 else Replicated()


def _sharded(source: ModelSource, world: int) -> tuple[PreTrainedModel, Partition]:
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    mesh = init_device_mesh(device.type, (world,))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    model = load_sharded(source, mesh, device, policy=policy)
    return model, FullyShard(model)


def _partitioned(
    source: ModelSource, engine: Engine, launch: Launch
) -> tuple[PreTrainedModel, Partition]:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", str(launch.local_rank))  # which DeepSpeed looks for
    try:
        from freezetrain.freezing.zero import gathering
    except ImportError as error:
        raise UserError(
            f"engine.kind is zero-3 and deepspeed cannot be imported ({error}); install "
            "freezetrain[deepspeed], or use fsdp2"
        ) from error
    held = stored_dtype(source) if source.dtype == "stored" else getattr(torch, source.dtype)
    config: dict[str, Any] = deepspeed_config(engine, Optimization())
    config["zero_optimization"].pop("offload_optimizer", None)  # there is none
    if held in (torch.bfloat16, torch.float16):
        config["bf16" if held == torch.bfloat16 else "fp16"] = {"enabled": True}
    model = load_partitioned(source, config)
    return model, Zero3(gathering(model, config))


class Zero3(Split):
    """Each rank holds a flat part of every weight, of equal length: the last ones end in padding.

    Without an optimizer DeepSpeed gathers weights and reduces no gradients: each rank has the whole
    one of its own rows of the batch, and they are added up here, in fp32, as each appears.

    ``engine`` is what :func:`~freezetrain.freezing.zero.gathering` returned for the model.
    """

    def __init__(self, engine: object) -> None:
        super().__init__()
        self._engine = engine  # it stops gathering when it is gone

    def device(self, model: nn.Module) -> torch.device:  # weights may be offloaded
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def part(self, parameter: Any) -> Tensor:
        return parameter.ds_tensor.detach()

    def gradient(self, parameter: Any) -> Tensor:
        part = parameter.ds_tensor
        padded = torch.zeros(part.ds_numel * self.world, device=parameter.grad.device)
        padded[: parameter.ds_numel] = parameter.grad.flatten()
        mine = torch.empty(part.ds_numel, device=padded.device)
        group = parameter.ds_process_group
        dist.reduce_scatter(mine, list(padded.chunk(self.world)), group=group)
        return mine.to(part.device)  # which is the CPU's where weights are offloaded

    def whole(self, parameter: Any, part: Tensor) -> Tensor | None:
        full = self._gathered(parameter, part)
        return full.cpu() if self.rank == 0 else None

    def full(self, parameter: Any) -> Tensor:
        return self._gathered(parameter, self.part(parameter))

    def _gathered(self, parameter: Any, part: Tensor) -> Tensor:
        part = part.to("cuda" if torch.cuda.is_available() else "cpu")
        full = torch.empty(part.numel() * self.world, dtype=part.dtype, device=part.device)
        dist.all_gather(list(full.chunk(self.world)), part, group=parameter.ds_process_group)
        return full[: parameter.ds_numel].view(parameter.ds_shape)
