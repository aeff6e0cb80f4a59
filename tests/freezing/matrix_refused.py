"""What a freeze refuses, built for real: each attempt gives the message."""

import traceback
from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from frozen_reference import TinyLM, mixed_region
from matrix_cells import Cell, optimizer_of
from matrix_zero import configuration
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel

from freezetrain.errors import CheckError, UserError
from freezetrain.freezing import freeze


def refusals() -> dict[str, str]:
    """What was tried -> the error's message, or what else came of it. In a process group of 2."""
    return {name: _message(build) for name, build in REFUSED.items()}


def _message(build: Callable[[TinyLM], tuple[nn.Module, Any]]) -> str:
    module = TinyLM().float()
    region = mixed_region(module)
    try:
        model, optimizer = build(module)
        freeze(model, optimizer, region)
    except (UserError, CheckError) as error:
        return str(error)
    except Exception:
        return traceback.format_exc()
    return "not refused"


def _adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters())


def _fsdp_1(module: TinyLM) -> tuple[nn.Module, Any]:
    model = FullyShardedDataParallel(module, device_id=torch.device("cpu"))
    return model, _adamw(model)


def _columns(module: TinyLM) -> tuple[nn.Module, Any]:
    fully_shard(module, shard_placement_fn=lambda parameter: Shard(parameter.ndim - 1))
    return module, _adamw(module)


def _redundancy(module: TinyLM) -> tuple[nn.Module, Any]:
    optimizer = ZeroRedundancyOptimizer(module.parameters(), torch.optim.AdamW)
    return DistributedDataParallel(module), optimizer


def _power_sgd(module: TinyLM) -> tuple[nn.Module, Any]:
    model = DistributedDataParallel(module)
    model.register_comm_hook(powerSGD_hook.PowerSGDState(None), powerSGD_hook.powerSGD_hook)
    return model, _adamw(model)


def _deepspeed(stage: int, precision: str, **changes: Any) -> Callable:
    def build(module: TinyLM) -> tuple[nn.Module, Any]:
        config = configuration(Cell(f"ZeRO-{stage}", precision))
        config["zero_optimization"] |= changes
        optimizer = optimizer_of("AdamW", dict(module.named_parameters()))
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
        return engine, None

    return build


REFUSED = {
    "FSDP1 (FullyShardedDataParallel)": _fsdp_1,
    "FSDP2 with shard_placement_fn": _columns,
    "DDP with a PowerSGD hook": _power_sgd,
    "ZeroRedundancyOptimizer": _redundancy,
    "DeepSpeed stage 0 in bf16": _deepspeed(0, "bf16"),
    "DeepSpeed stage 0 in fp16": _deepspeed(0, "fp16"),
    "ZeRO-2 with round_robin_gradients": _deepspeed(2, "fp32", round_robin_gradients=True),
}
