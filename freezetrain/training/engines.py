"""Lightning's strategy, devices and precision for an engine of the recipe."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    Strategy,
)
from torch.distributed.fsdp import MixedPrecisionPolicy

from freezetrain.devices import cluster_environment, devices, kind_of, world_size
from freezetrain.errors import UserError
from freezetrain.extras import imported_for
from freezetrain.ranks import Launch
from freezetrain.recipe.check import shown
from freezetrain.recipe.optimization import Engine, Optimization
from freezetrain.remarks import printed_kept_back
from freezetrain.training.checkpoint_io import FileCheckpointIO

_FROM_OPTIMIZATION = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "fp16",
    "bf16",
    "amp",
)

_NOT_FROZEN = ("round_robin_gradients", "zenflow", "zero_quantized_weights")


class DeepSpeed(DeepSpeedStrategy):
    """Lightning's strategy, which here also runs on CPUs, and leaves the loading to its module.

    DeepSpeed itself works on gloo where the environment says ``DS_ACCELERATOR=cpu``.
    """

    def setup_environment(self) -> None:
        if self.on_gpu:
            super().setup_environment()
        else:  # past Lightning's refusal
            super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        if self.on_gpu:
            super().setup_distributed()
        else:
            self.set_world_ranks()
            with printed_kept_back():
                self._init_deepspeed_distributed()

    @property
    def on_gpu(self) -> bool:
        return torch.cuda.is_available()

    @property
    def root_device(self) -> torch.device:
        return super().root_device if self.on_gpu else torch.device("cpu", 0)

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        yield  # CausalLM partitions the model as it loads it


def trained_in_16_bits(settings: Optimization) -> bool:
    return precision(settings) != "32-true"


def precision(settings: Optimization) -> str:
    """auto: bf16-mixed on a GPU that has it, 32-true elsewhere."""
    if settings.precision != "auto":
        return settings.precision
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bf16-mixed" if bf16 else "32-true"


def policy(settings: Optimization) -> MixedPrecisionPolicy:
    """FSDP2 casts by itself: weights are gathered in bf16, and gradients are reduced in fp32."""
    if precision(settings) == "bf16-mixed":
        return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return MixedPrecisionPolicy()


def deepspeed_config(engine: Engine, settings: Optimization) -> dict[str, Any]:
    """DeepSpeed's configuration. UserError for entries that freezetrain sets by itself."""
    zero: dict[str, Any] = {
        "stage": int(engine.kind[-1]),
        "contiguous_gradients": True,
        "overlap_comm": torch.cuda.is_available(),
    }
    if engine.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if engine.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    config: dict[str, Any] = {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": settings.micro_batch,
    }
    for name, value in engine.deepspeed.items():
        if name in _FROM_OPTIMIZATION:
            raise UserError(
                f"engine.deepspeed sets {name}, which follows from optimization; leave it out"
            )
        if name == "zero_optimization" and not isinstance(value, Mapping):
            raise UserError(
                f"engine.deepspeed.zero_optimization must be a group of fields, got {shown(value)}"
            )
        config[name] = {**config[name], **value} if name == "zero_optimization" else value
    if config["zero_optimization"]["stage"] != zero["stage"]:
        raise UserError(
            f"engine.deepspeed sets stage {config['zero_optimization']['stage']} and engine.kind "
            f"is {engine.kind}; leave the stage out"
        )
    with imported_for("deepspeed", f"engine.kind {engine.kind}", ", or use fsdp2"):
        from freezetrain.freezing.zero import check_settings

    check_settings(config)
    return config


def refuse_settings_that_freeze_nothing(engine: Engine) -> None:
    """UserError for entries of DeepSpeed's configuration with which nothing can be frozen.

    The freeze itself finds what they make of the engine, and only then, on all ranks.
    """
    zero = engine.deepspeed.get("zero_optimization")
    if not isinstance(zero, Mapping):
        return
    given = [name for name in _NOT_FROZEN if zero.get(name)]
    given += ["zero_hpz_partition_size"] if zero.get("zero_hpz_partition_size", 1) != 1 else []
    for name in ("offload_optimizer", "offload_param"):
        settings = zero.get(name)
        if isinstance(settings, Mapping) and settings.get("device") == "nvme":
            given.append(f"{name} to nvme")
    if given:
        raise UserError(
            f"engine.deepspeed.zero_optimization sets {given[0]}, with which no region can be "
            "frozen; leave it out"
        )


def optimizer_device(strategy: Strategy) -> torch.device:
    """Where the optimizer steps; the weights may still lie elsewhere when it is made."""
    config = strategy.config if isinstance(strategy, DeepSpeedStrategy) else None
    offloaded = "offload_optimizer" in (config or {}).get("zero_optimization", {})
    return torch.device("cpu") if offloaded else strategy.root_device


def trainer_options(
    engine: Engine, settings: Optimization, launch: Launch, deepspeed: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of Lightning's Trainer: strategy, devices, precision, accumulation.

    ``deepspeed``: further entries of DeepSpeed's configuration, which ``resumable`` gives.
    """
    world = world_size(engine, launch)
    kind = kind_of(engine, world)
    on_gpu = torch.cuda.is_available()
    options: dict[str, Any] = {
        "accelerator": "gpu" if on_gpu else "cpu",
        "devices": devices(engine, launch),
        "num_nodes": launch.nodes if launch.external else 1,
        "precision": precision(settings),
        "accumulate_grad_batches": settings.accumulate(world),
        "use_distributed_sampler": False,
        "plugins": [cluster_environment(launch)],
    }
    if kind in ("one", "ddp"):
        options["plugins"].append(FileCheckpointIO())
    if kind == "ddp":
        options["strategy"] = DDPStrategy(gradient_as_bucket_view=True)
    elif kind == "fsdp2":
        options["strategy"] = ModelParallelStrategy(
            data_parallel_size=world,
            tensor_parallel_size=1,
            process_group_backend=None if on_gpu else "gloo",
        )
        if precision(settings) == "bf16-mixed":
            options["precision"] = "32-true"  # see policy
    elif kind.startswith("zero"):
        if not on_gpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        options["strategy"] = DeepSpeed(
            config={**deepspeed_config(engine, settings), **deepspeed},
            process_group_backend=None if on_gpu else "gloo",
        )
    return options
