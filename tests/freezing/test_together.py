"""What one rank finds, every rank that trains with it is told; the others go on."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from forked_ranks import run_ranks
from frozen_reference import TinyLM, adamw, loss_of, mixed_region, steps_of_batches
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from freezetrain.errors import CheckError, UserError
from freezetrain.freezing import freeze
from freezetrain.regions import Region


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


def wrong_base(rank: int, world: int) -> str | None:
    """Wrong in the first row alone, which only rank 0 holds."""
    model = TinyLM()
    region = Region.tensors(model, ["up.weight"])
    stored = {"up.weight": model.up.weight.detach().clone()}
    stored["up.weight"][0, 0] += 1
    fully_shard(model)
    return complaint(lambda: freeze(model, adamw(model.parameters()), region, base=stored))


def other_regions(rank: int, world: int) -> str | None:
    model = TinyLM()
    region = mixed_region(model) if rank else Region.tensors(model, ["up.*"])
    fully_shard(model)
    return complaint(lambda: freeze(model, adamw(model.parameters()), region))


def uneven_batches(rank: int, world: int) -> str | None:
    """Within join, ranks without data take no part in collectives of others."""
    model = DistributedDataParallel(TinyLM())
    optimizer = adamw(model.parameters())
    freeze(model, optimizer, mixed_region(model.module))

    def run() -> None:
        with model.join():
            train(model, optimizer, 2)

    return complaint(run)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (wrong_base, "UserError: the weights of up.weight at its frozen entries are not those"),
        (other_regions, "UserError: the ranks were given different regions"),
        (uneven_batches, "UserError: cannot audit within DistributedDataParallel.join"),
    ],
)
def test_all_ranks_refuse_what_one_does(
    work: Callable[[int, int], str | None], message: str
) -> None:
    for told in run_ranks(work, world=3):
        assert told is not None
        assert told.startswith(message)


def two_groups(rank: int, world: int) -> str | None:
    """Ranks 0 and 1 train one model, 2 and 3 another; an entry moves on rank 3."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    model = DistributedDataParallel(TinyLM(seed=rank // 2), process_group=groups[rank // 2])
    optimizer = adamw(model.parameters())
    freeze(model, optimizer, mixed_region(model.module), audit_every=1)
    train(model, optimizer, 1)
    if rank == 3:
        model.module.down.bias.data[1] += 1
    return complaint(lambda: train(model, optimizer, 1))


def test_only_the_ranks_of_its_group_hear_of_an_entry_that_moved() -> None:
    first, second, third, fourth = run_ranks(two_groups, world=4)
    assert first is second is None
    assert third == fourth
    assert third is not None
    assert third.startswith("CheckError: rank 3, step 2: module.down.bias[1] is frozen")
