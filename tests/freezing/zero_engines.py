"""The tiny model under DeepSpeed engines, for the worker programs beside this."""

import os
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import deepspeed.runtime.zero.muon.muon_optimizer  # slow, so import it before ranks are forked
import torch
import torch.distributed as dist
from deepspeed.utils import logger, safe_get_full_fp32_param
from frozen_reference import MAX_NORM, TinyLM, adamw, loss_of, steps_of_batches
from torch import Tensor
from zero_checkpoint_cells import BF16_OPTIMIZER

logger.setLevel("ERROR")

ROWS = 6  # of each micro-batch: 1, 2 and 3 ranks share them evenly


def build(engine: str, dtype: str, world: int, **options: Any) -> Any:
    """An engine for the tiny model: "ZeRO-1" to 3 or BF16_OPTIMIZER, in "fp32" or "bf16".

    ZeRO-3 keeps vectors whole between steps, and splits matrices. ``options``: further entries of
    DeepSpeed's configuration.
    """
    model = TinyLM().float()
    deepspeed.init_distributed("gloo")
    stage = 1 if engine == BF16_OPTIMIZER else int(engine[-1])
    if engine == BF16_OPTIMIZER:
        options["data_types"] = {"grad_accum_dtype": "fp32"}
    config = {
        "train_micro_batch_size_per_gpu": ROWS // world,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": MAX_NORM,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 20},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": dtype == "bf16"},
        **options,
    }
    return deepspeed.initialize(model=model, optimizer=adamw(model.parameters()), config=config)[0]


def train_steps(engine: Any, rank: int, world: int, first: int, last: int) -> list[float]:
    """Steps ``first`` to ``last - 1``; the loss of each, the mean over all ranks."""
    losses = []
    for batches in steps_of_batches(steps=last, rows=ROWS)[first:]:
        total = torch.zeros((), dtype=torch.float64)
        for input_ids in batches:
            mine = input_ids[rank::world]
            loss = loss_of(engine(mine).float(), mine)
            engine.backward(loss)
            engine.step()
            total += loss.detach() / len(batches) / world
        dist.all_reduce(total)
        losses.append(total.item())
    return losses


def masters(engine: Any) -> dict[str, Tensor]:
    """The fp32 masters put together, by DeepSpeed's own public call."""
    return {
        name: safe_get_full_fp32_param(parameter).detach().clone()
        for name, parameter in engine.module.named_parameters()
    }


def copies(engine: Any) -> dict[str, Tensor]:
    """The weights of the forward pass put together, in their own dtype."""
    parameters = dict(engine.module.named_parameters())
    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}
