"""Two gloo processes under DDP against one process in which frozen entries are constants."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked_ranks import run_ranks
from frozen_reference import (
    MAX_NORM,
    Constants,
    TinyLM,
    adamw,
    assert_same_training,
    loss_of,
    mixed_region,
    steps_of_batches,
    train,
)
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from freezetrain.errors import CheckError, UserError
from freezetrain.freezing import Freeze, freeze


def train_rank(rank: int, world: int, options: dict[str, Any]) -> dict[str, Tensor]:
    """This rank's rows of every micro-batch, reduced only in the last micro-step.

    In every one with a static graph, which no_sync breaks on its first iteration.
    """
    model = DistributedDataParallel(TinyLM(), **options)
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
    return {name: value.detach() for name, value in model.module.named_parameters()}


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_as_bucket_view": True}, {"static_graph": True}],
    ids=["plain", "views", "static"],
)
def test_ranks_follow_the_single_process(options: dict[str, Any]) -> None:
    model = TinyLM()
    reference = Constants(TinyLM(), mixed_region(model))
    train(reference, reference.parameters(), adamw(reference.parameters()), steps_of_batches())
    first, second = run_ranks(train_rank, options)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    model.load_state_dict(first, strict=False)  # the tied head is stored once
    assert_same_training(model, reference)


MATRICES = ("up.weight", "down.weight")


def muon_and_adamw(named: dict[str, nn.Parameter]) -> list[Optimizer]:
    """Muon for matrices, AdamW for the rest; the first steps in bf16."""
    muon = torch.optim.Muon([named[name] for name in MATRICES], lr=1e-2, weight_decay=0.1)
    return [muon, adamw([p for name, p in named.items() if name not in MATRICES])]


def check_copies(handle: Freeze, model: nn.Module, other: nn.Module, rank: int) -> None:
    """``other`` has other weights, laid out as those of ``model`` are."""
    with pytest.raises(
        CheckError, match=r"copy of the model holds other values of (module\.)?embedding"
    ):
        handle.verify(other)
    handle.put_into(other)
    assert handle.verify(other) == handle.count
    state = {name: value.detach().clone() for name, value in model.named_parameters()}
    handle.verify_checkpoint(state)
    whole = {n: v.full_tensor() if isinstance(v, DTensor) else v for n, v in state.items()}
    handle.verify_checkpoint({} if rank else whole)  # as one rank writes it
    whole["down.bias"] = whole["down.bias"].float() + 1
    with pytest.raises(CheckError, match=r"^rank 0, .* about to be written .* of down\.bias"):
        handle.verify_checkpoint({} if rank else whole)
    if rank:
        last = state["down.bias"]
        (last.to_local() if isinstance(last, DTensor) else last)[-1] += 1
    with pytest.raises(CheckError, match=r"^rank 1, .* about to be written .* of down\.bias"):
        handle.verify_checkpoint(state)


def train_with_two_optimizers(rank: int, world: int, engine: str) -> dict[str, Tensor]:
    inner, other = TinyLM(), TinyLM(seed=1)
    model: nn.Module = inner
    if engine == "DDP":
        model = DistributedDataParallel(inner)
    else:
        for each in (inner, other):
            for module in (each.up, each.down, each):
                fully_shard(module)
    optimizers = muon_and_adamw(dict(inner.named_parameters()))
    region = mixed_region(TinyLM())
    with freeze(model, optimizers, region, audit_every=1) as handle:
        assert handle.engine == engine
        for batches in steps_of_batches():
            for input_ids in batches:
                mine = input_ids[rank::world]
                (loss_of(model(mine), mine) / len(batches)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        assert handle.verify() == handle.count == sum(e.count for e in region.values())
        check_copies(handle, inner, other, rank)
    values = {name: p.detach() for name, p in inner.named_parameters()}
    return {n: v.full_tensor() if isinstance(v, DTensor) else v for n, v in values.items()}


@pytest.mark.parametrize("engine", ["FSDP2", pytest.param("DDP", marks=pytest.mark.exhaustive)])
def test_two_optimizers_under_one_freeze(engine: str) -> None:
    region = mixed_region(TinyLM())
    reference = Constants(TinyLM(), region, flat=False)
    optimizers = muon_and_adamw(reference.free)
    for batches in steps_of_batches():
        for input_ids in batches:
            (loss_of(reference(input_ids), input_ids) / len(batches)).backward()
        nn.utils.clip_grad_norm_(reference.parameters(), MAX_NORM)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    first, second = run_ranks(train_with_two_optimizers, engine)
    for name, value in first.items():
        assert torch.equal(value, second[name])
        mask, expected = reference.masks[name], reference.weights()[name]
        assert torch.equal(value[mask], reference.constants[name][mask])
        # Muon orthogonalizes in bf16, to which sums in another order may round otherwise.
        near = {"rtol": 0, "atol": 1e-3} if name in MATRICES else {"rtol": 1e-3, "atol": 1e-3}
        torch.testing.assert_close(value, expected, **near)


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


def test_gradients_are_masked_before_they_are_reduced() -> None:
    model = TinyLM()
    first, second = run_ranks(reduced_gradients)
    for frozen in mixed_region(model).resolve(model):
        mask = frozen.entries.mask()
        assert not first[frozen.name][mask].any()
        assert not second[frozen.name][mask].any()
    # Each rank's own, not reduced yet.
    assert not torch.equal(first["up.weight"], second["up.weight"])
