"""The runs in test_together.py: ``python together_worker.py FOLDER``."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from forked_workers import run_ranks
from frozen_reference import TinyLM, adamw, loss_of, mixed_region, steps_of_batches
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from freezetrain.errors import CheckError, UserError
from freezetrain.freezing import freeze
from freezetrain.regions import Region

WORLD = 4


def complaint(action: Callable[[], object]) -> str | None:
    """What this rank is told."""
    try:
        action()
    except (CheckError, UserError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for (ids,) in steps_of_batches(steps, 1):
        optimizer.zero_grad()
        loss_of(model(ids), ids).backward()
        optimizer.step()


def wrong_base(rank: int) -> str | None:
    """Wrong in the first row alone, which only rank 0 holds."""
    model = TinyLM()
    region = Region.tensors(model, ["up.weight"])
    stored = {"up.weight": model.up.weight.detach().clone()}
    stored["up.weight"][0, 0] += 1
    fully_shard(model)
    return complaint(lambda: freeze(model, adamw(model.parameters()), region, base=stored))


def other_regions(rank: int) -> str | None:
    model = TinyLM()
    region = mixed_region(model) if rank else Region.tensors(model, ["up.*"])
    fully_shard(model)
    return complaint(lambda: freeze(model, adamw(model.parameters()), region))


def two_groups(rank: int) -> str | None:
    """Ranks 0 and 1 train one model, 2 and 3 another; an entry moves on rank 3."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    model = DistributedDataParallel(TinyLM(seed=rank // 2), process_group=groups[rank // 2])
    optimizer = adamw(model.parameters())
    freeze(model, optimizer, mixed_region(model.module), audit_every=1)
    train(model, optimizer, 1)
    if rank == 3:
        model.module.down.bias.data[1] += 1
    found = complaint(lambda: train(model, optimizer, 1))
    dist.barrier()
    return found


def uneven_batches(rank: int) -> str | None:
    """Within join, ranks without data take no part in collectives of others."""
    model = DistributedDataParallel(TinyLM())
    optimizer = adamw(model.parameters())
    freeze(model, optimizer, mixed_region(model.module))

    def run() -> None:
        with model.join():
            train(model, optimizer, 2)

    return complaint(run)


def work(rank: int, world: int, folder: Path) -> None:
    found = {run.__name__: run(rank) for run in (wrong_base, other_regions, two_groups)}
    found["uneven_batches"] = uneven_batches(rank)  # last: it leaves join's collectives open
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run_ranks(folder / "store", WORLD, work, folder)
