"""How many processes an engine of a recipe wants, on which devices, and their start."""

import os

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.fabric.strategies import DDPStrategy

from freezetrain.errors import UserError
from freezetrain.extras import require
from freezetrain.ranks import Launch
from freezetrain.recipe.optimization import Engine


def cluster_environment(launch: Launch) -> ClusterEnvironment:
    """What Lightning's ``Trainer(plugins=...)`` takes, so that it does not guess otherwise.

    Lightning takes any process with SLURM_NTASKS for one of srun's, and its SLURM plugin would
    put the job back in the queue on a signal by itself.
    """
    if launch.by == "torchrun":
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if launch.by == "srun" else LightningEnvironment()


def kind_of(engine: Engine, world: int) -> str:
    """The engine by name, with auto resolved: one, ddp, fsdp2, zero-1, zero-2 or zero-3."""
    if engine.kind == "auto":
        return "one" if world == 1 else "ddp"
    return engine.kind


def devices(engine: Engine, launch: Launch) -> int:
    """Devices on each machine. UserError where there are fewer than the recipe asks for."""
    if launch.external:
        return launch.local_world
    gpus = torch.cuda.device_count()
    if engine.devices is not None and 0 < gpus < engine.devices:
        raise UserError(
            f"engine.devices is {engine.devices} and this machine has {gpus} GPUs; ask for {gpus}"
        )
    return engine.devices or max(1, gpus)


def require_engine(engine: Engine, launch: Launch) -> None:
    """UserError where DeepSpeed is missing, or for more processes than CPU cores (and than 8)."""
    if engine.kind.startswith("zero"):
        require("deepspeed", f"engine.kind {engine.kind}", ", or use fsdp2")
    cores = os.cpu_count() or 1
    asked, most = devices(engine, launch), max(8, cores)
    if not launch.external and not torch.cuda.is_available() and asked > most:
        raise UserError(
            f"engine.devices is {asked} and this machine has no GPU and {cores} CPU cores; ask for "
            f"{most} or fewer"
        )


def world_size(engine: Engine, launch: Launch) -> int:
    """Processes that train, on all machines."""
    return devices(engine, launch) * (launch.nodes if launch.external else 1)


def start_ranks(engine: Engine, launch: Launch) -> None:
    """Start the other ranks, or meet them, unless one process does it all; each rank calls this."""
    world = world_size(engine, launch)
    if world == 1 and kind_of(engine, world) in ("one", "ddp"):
        return
    on_gpu = torch.cuda.is_available()
    Fabric(
        accelerator="gpu" if on_gpu else "cpu",
        devices=devices(engine, launch),
        num_nodes=launch.nodes if launch.external else 1,
        strategy=DDPStrategy(process_group_backend=None if on_gpu else "gloo"),
        plugins=[cluster_environment(launch)],
    ).launch()
