"""The tiny model under FSDP2, for the worker programs beside this."""

import torch
import torch.distributed as dist
from frozen_reference import MAX_NORM, TinyLM, adamw, loss_of, steps_of_batches
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

ROWS = 6  # of each micro-batch: 1, 2 and 3 ranks share them evenly
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build(dtype: str) -> tuple[nn.Module, Optimizer]:
    """The tiny model, split over all ranks, and its optimizer."""
    model = TinyLM().to(DTYPES[dtype])
    for module in (model.up, model.down, model):
        fully_shard(module)
    return model, adamw(model.parameters())


def train_steps(
    model: nn.Module, optimizer: Optimizer, rank: int, world: int, first: int, last: int
) -> list[float]:
    """Steps ``first`` to ``last - 1``; the loss of each, the mean over all ranks."""
    losses = []
    for batches in steps_of_batches(steps=last, rows=ROWS)[first:]:
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for input_ids in batches:
            mine = input_ids[rank::world]
            loss = loss_of(model(mine).float(), mine) / len(batches)
            loss.backward()
            total += loss.detach() / world
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        dist.all_reduce(total)
        losses.append(total.item())
    return losses


def whole(model: nn.Module) -> dict[str, Tensor]:
    """The weights put together, by FSDP's own means."""
    return {name: _whole(parameter) for name, parameter in model.named_parameters()}


def _whole(parameter: nn.Parameter) -> Tensor:
    assert isinstance(parameter, DTensor)
    return parameter.full_tensor().detach().clone()
