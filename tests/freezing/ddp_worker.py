"""One rank of the run in test_ddp.py: ``python ddp_worker.py FOLDER``."""

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from frozen_reference import (
    MAX_NORM,
    TinyLM,
    adamw,
    loss_of,
    mixed_region,
    steps_of_batches,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from freezetrain.errors import UserError
from freezetrain.freezing import freeze


def train_rank(model: DistributedDataParallel, rank: int, world: int) -> None:
    """This rank's rows of every micro-batch, reduced only in the last micro-step.

    In every one with a static graph, which no_sync breaks on its first iteration.
    """
    optimizer = adamw(model.parameters())
    with freeze(model, optimizer, mixed_region(model.module)):
        for batches in steps_of_batches():
            optimizer.zero_grad()
            for number, input_ids in enumerate(batches, start=1):
                mine = input_ids[rank::world]
                reduce = number == len(batches) or model.static_graph
                with nullcontext() if reduce else model.no_sync():
                    (loss_of(model(mine), mine) / len(batches)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()


def reduced_gradients(rank: int, world: int) -> dict[str, Tensor]:
    """What this rank hands to the reduction, as a communication hook sees it."""
    model = DistributedDataParallel(TinyLM())
    handle = freeze(model, adamw(model.parameters()), mixed_region(model.module))
    seen: dict[str, Tensor] = {}
    names = {parameter: name for name, parameter in model.module.named_parameters()}

    def record(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            seen[names[parameter]] = gradient.clone()
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    model.register_comm_hook(None, record)
    mine = steps_of_batches(1, 1)[0][0][rank::world]
    loss_of(model(mine), mine).backward()
    with pytest.raises(UserError, match="communication hook"):  # it may write anything
        handle.verify()
    return seen


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    for name, options in {
        "plain": {},
        "views": {"gradient_as_bucket_view": True},
        "static": {"static_graph": True},
    }.items():
        model = DistributedDataParallel(TinyLM(), **options)
        train_rank(model, rank, world)
        state = {key: value.detach() for key, value in model.module.named_parameters()}
        save_file(state, folder / f"{name}-{rank}.safetensors")
    save_file(reduced_gradients(rank, world), folder / f"reduced-{rank}.safetensors")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a regular exit


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
