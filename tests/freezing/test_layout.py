"""A layout and its proof: flat masters in slices against the weights of the model."""

import sys
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from frozen_reference import TinyLM, adamw, flat_layout, mixed_region
from torch import nn

from freezetrain.errors import CheckError
from freezetrain.freezing import freeze
from freezetrain.freezing.layout import Layout, plain, prove
from freezetrain.freezing.optimizers import take_apart
from freezetrain.regions import Region


def on_ranks(
    layouts: list[Layout], check: Callable[[Layout], None], monkeypatch
) -> list[Exception | None]:
    """What ``check`` raises on each rank, where ranks are threads that gather from one another."""
    items: dict[int, object] = {}
    raised: list[Exception | None] = [None] * len(layouts)
    barrier = threading.Barrier(len(layouts), timeout=30)

    def gather(layout: Layout, item: object) -> list:
        items[layouts.index(layout)] = item
        barrier.wait()
        found = [items[rank] for rank in range(len(layouts))]
        barrier.wait()
        return found

    def run(rank: int) -> None:
        try:
            check(layouts[rank])
        except Exception as error:
            raised[rank] = error

    monkeypatch.setattr(Layout, "gather", gather)
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(layouts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_one_device_holds_everything() -> None:
    model = TinyLM()
    resolved = mixed_region(model).resolve(model)
    optimizer = adamw(model.parameters())
    layout = plain("one device", take_apart([optimizer]), resolved, replicated=False)
    assert layout.masters == layout.gradients
    assert not layout.copies
    assert [shard.owner for shard in layout.masters] == [item.parameter for item in resolved]
    assert [shard.number for shard in layout.masters] == list(range(len(resolved)))
    assert layout.gather("mine") == ["mine"]
    assert torch.equal(layout.full(model.up.weight), model.up.weight)


def test_entries_are_held_once() -> None:
    model = TinyLM()
    layout = flat_layout(model, mixed_region(model)).on_device()
    assert list(map(id, layout.gradients)) == list(map(id, layout.copies))
    one = plain(
        "one device", take_apart([]), mixed_region(model).resolve(model), replicated=False
    ).on_device()
    assert list(map(id, one.gradients)) == list(map(id, one.masters))
    # As under ZeRO-3, where masters and copies are the same part of a parameter.
    apart = plain(
        "one device", take_apart([]), mixed_region(model).resolve(model), replicated=False
    )
    split = replace(apart, copies=[replace(shard) for shard in apart.masters]).on_device()
    for master, copy in zip(split.masters, split.copies, strict=True):
        assert master is not copy
        assert master.entries is copy.entries


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("exact", [True, False])
def test_masters_that_are_the_weights_are_proven(world: int, exact: bool, monkeypatch) -> None:
    model = TinyLM().float()
    region = mixed_region(model)
    resolved = region.resolve(model)
    layouts = [flat_layout(model, region, rank, world) for rank in range(world)]
    held = sum(shard.entries.count for layout in layouts for shard in layout.masters)
    assert held == sum(item.entries.count for item in resolved)
    raised = on_ranks(layouts, lambda layout: prove(layout, resolved, exact), monkeypatch)
    assert raised == [None] * world


def off_by_one(model: nn.Module, region: Region) -> list[Layout]:
    return [flat_layout(model, region, rank, 2, shift=rank) for rank in range(2)]


def loaded_after(model: nn.Module, region: Region) -> list[Layout]:
    layouts = [flat_layout(model, region, rank, 2) for rank in range(2)]
    with torch.no_grad():
        model.down.bias += 1
    return layouts


def one_is_missing(model: nn.Module, region: Region) -> list[Layout]:
    layouts = [flat_layout(model, region, rank, 2) for rank in range(2)]
    return [layouts[0], replace(layouts[1], masters=layouts[1].masters[:-1])]


def one_is_there_twice(model: nn.Module, region: Region) -> list[Layout]:
    layouts = [flat_layout(model, region, rank, 2) for rank in range(2)]
    return [layouts[0], replace(layouts[1], masters=[*layouts[1].masters, layouts[1].masters[-1]])]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("fault", [off_by_one, loaded_after, one_is_missing, one_is_there_twice])
def test_masters_that_are_not_the_weights_are_found(fault, exact: bool, monkeypatch) -> None:
    model = TinyLM().float()
    region = mixed_region(model)
    resolved = region.resolve(model)
    layouts = fault(model, region)
    raised = on_ranks(layouts, lambda layout: prove(layout, resolved, exact), monkeypatch)
    assert all(isinstance(error, CheckError) for error in raised)
    (message,) = {str(error) for error in raised}  # the same on every rank
    assert message.startswith("under a flat master, the optimizer's copy of ")
    if fault is loaded_after:
        assert "copy of down.bias does not hold" in message


def test_each_replica_is_put_together_by_itself(monkeypatch) -> None:
    model = TinyLM().float()
    region = mixed_region(model)
    resolved = region.resolve(model)

    def ranks() -> list[Layout]:
        return [
            replace(flat_layout(model, region, rank, 2), replica=replica)
            for replica in range(2)
            for rank in range(2)
        ]

    def check(layout: Layout) -> None:
        prove(layout, resolved, exact=True)

    assert on_ranks(ranks(), check, monkeypatch) == [None] * 4
    faulty = ranks()
    faulty[3].masters[0].owner.data.neg_()
    assert all(on_ranks(faulty, check, monkeypatch))


def test_trained_masters_need_only_round_to_the_weights() -> None:
    model = TinyLM().bfloat16()
    region = mixed_region(model)
    layout, resolved = flat_layout(model, region), region.resolve(model)
    prove(layout, resolved, exact=True)
    layout.masters[0].owner.data.mul_(1 + 2**-12)  # less than half a step of bfloat16
    prove(layout, resolved, exact=False)
    with pytest.raises(CheckError, match=r"copy of embedding\.weight"):
        prove(layout, resolved, exact=True)
    layout.masters[0].owner.data.mul_(1.01)
    with pytest.raises(CheckError, match=r"copy of embedding\.weight"):
        prove(layout, resolved, exact=False)


def test_what_is_not_split_needs_no_proof() -> None:
    def full(_: nn.Parameter) -> torch.Tensor:
        raise AssertionError("gathered")

    model = TinyLM()
    resolved = mixed_region(model).resolve(model)
    prove(
        replace(plain("one device", take_apart([]), resolved, replicated=False), full=full),
        resolved,
        exact=True,
    )


def test_a_layout_says_what_bit_for_bit_is_about() -> None:
    region = mixed_region(TinyLM())
    rounded = flat_layout(TinyLM().bfloat16(), region)
    assert rounded.rounds
    assert rounded.describe() == (
        "a flat master: its float32 masters, made from weights in bfloat16, and these weights"
    )
    same = flat_layout(TinyLM(), region, dtype=torch.float64)
    assert not same.rounds
    assert same.describe() == "a flat master, in float64"


def test_the_run_says_so_where_masters_were_made_from_rounded_weights(caplog, monkeypatch) -> None:
    model = TinyLM().bfloat16()
    region = mixed_region(model)
    layout = flat_layout(model, region)
    monkeypatch.setattr(sys.modules[freeze.__module__], "lay_out", lambda *_: layout)
    handle = freeze(model, None, region)
    assert [record.getMessage() for record in caplog.records] == [handle.description]
    assert handle.description.startswith("63 entries frozen under a flat master: its float32")
    caplog.clear()
    freeze(model, None, region, clamp=0.0)
    assert not caplog.records
