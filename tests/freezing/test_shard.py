"""Shards of a parameter against plain slices of its dense mask."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from freezetrain.freezing.layout import Shard, combined
from freezetrain.regions import Entries, Resolved

SHAPE = (7, 6)
MASKS = {
    "indices": torch.arange(42).view(SHAPE) == 17,
    "bits": torch.arange(42).view(SHAPE) % 3 > 0,
    "rows": torch.arange(7)[:, None].expand(SHAPE) == 2,
    "columns": torch.arange(6)[None].expand(SHAPE) == 4,
    "all": torch.ones(SHAPE, dtype=torch.bool),
}


@pytest.fixture(params=MASKS)
def mask(request) -> Tensor:
    return MASKS[request.param]


def frozen(mask: Tensor) -> Resolved:
    parameter = nn.Parameter(torch.arange(float(mask.numel())).view(mask.shape) + 0.5)
    return Resolved("model.w", "w", parameter, Entries.from_mask(mask))


def flat_parts(whole: Resolved, cuts: list[int], margin: int = 3) -> list[Shard]:
    """Each part in a flat tensor of its own, ``margin`` elements of others before and after."""
    values, shards = whole.parameter.detach().flatten(), []
    for start, end in pairwise(cuts):
        owner = torch.full((end - start + 2 * margin,), -9.0)
        owner[margin : margin + end - start] = values[start:end]
        shards.append(Shard.part(whole, 2, owner, start, (end - start,), margin))
    return shards


def test_every_kind_of_entries_occurs() -> None:
    assert {name: Entries.from_mask(mask).kind for name, mask in MASKS.items()} == {
        name: name for name in MASKS
    }


def test_a_whole_parameter(mask: Tensor) -> None:
    item = frozen(mask)
    shard = Shard.whole(item, 2)
    assert (shard.name, shard.key, shard.number, shard.shape) == ("model.w", "w", 2, SHAPE)
    assert torch.equal(shard.read(), item.parameter[mask])
    shard.write(-shard.read().double())
    assert torch.equal(item.parameter < 0, mask)
    item.parameter.grad = torch.ones(SHAPE)
    assert shard.gradient() is item.parameter.grad
    places = mask.flatten().nonzero().flatten().tolist()
    assert [shard.index_of(place) for place in range(len(places))] == places


@pytest.mark.parametrize("cuts", [[0, 42], [0, 14, 28, 42], [0, 1, 17, 18, 41, 42], [0, 0, 42, 42]])
def test_flat_parts(mask: Tensor, cuts: list[int]) -> None:
    item = frozen(mask)
    values, flat = item.parameter.detach().flatten(), mask.flatten()
    whole = Shard.whole(item, 2)
    shards = flat_parts(item, cuts)
    for shard, (start, end) in zip(shards, pairwise(cuts), strict=True):
        assert torch.equal(shard.of(shard.owner), values[start:end])
        assert shard.of(shard.owner).shape == shard.entries.shape
        assert torch.equal(shard.entries.mask(), flat[start:end])
        assert shard.before == flat[:start].sum()
        assert shard.shape == SHAPE
        inside = values[start:end][flat[start:end]]
        assert torch.equal(shard.read(), inside)
        assert [shard.index_of(place) + 0.5 for place in range(len(inside))] == inside.tolist()
        gradient = torch.arange(float(len(shard.owner)))
        shard.owner.grad = gradient
        assert torch.equal(shard.gradient(), gradient[3:-3])
    assert combined([int(shard.digest()) for shard in shards]) == int(whole.digest())


def test_writing_a_flat_part_leaves_all_else(mask: Tensor) -> None:
    item = frozen(mask)
    (_, shard, _) = flat_parts(item, [0, 10, 25, 42])
    before = shard.owner.clone()
    shard.write(torch.full((shard.entries.count,), 7.0))
    expected = before.clone()
    expected[3:18][mask.flatten()[10:25]] = 7.0
    assert torch.equal(shard.owner, expected)


@pytest.mark.parametrize("rows", [[0, 7], [0, 3, 5, 7], [0, 4, 7, 7]])
def test_parts_that_keep_their_shape(mask: Tensor, rows: list[int]) -> None:
    """As FSDP2 splits: whole rows, on the last ranks perhaps none."""
    item = frozen(mask)
    digests = []
    for start, end in pairwise(rows):
        owner = item.parameter.detach()[start:end].clone()
        first = start * 6 if end > start else 0
        shard = Shard.part(item, 2, owner, first, (end - start, 6))
        assert shard.of(owner) is owner
        assert torch.equal(shard.entries.mask(), mask[start:end])
        assert torch.equal(shard.read(), owner[mask[start:end]])
        assert shard.before == mask[: start if end > start else 0].sum()
        places = [shard.index_of(place) + 0.5 for place in range(shard.entries.count)]
        assert places == shard.read().tolist()
        digests.append(int(shard.digest()))
        shard.write(torch.zeros(shard.entries.count))
        assert torch.equal(owner != 0, ~mask[start:end])
    assert combined(digests) == int(Shard.whole(item, 2).digest())


def test_the_digest_depends_on_the_place_in_the_region(mask: Tensor) -> None:
    item = frozen(mask)
    assert Shard.whole(item, 0).digest() != Shard.whole(item, 1).digest()
    # And what is read one element off does not pass for the right part.
    right, wrong = (
        Shard.part(item, 0, item.parameter.detach().flatten(), 0, (20,), start) for start in (0, 1)
    )
    assert right.digest() != wrong.digest()


def test_the_digest_of_values_rounded_to_a_dtype(mask: Tensor) -> None:
    item = frozen(mask)
    with torch.no_grad():
        item.parameter.add_(1e-4)
    rounded = Resolved("w", "w", nn.Parameter(item.parameter.detach().bfloat16()), item.entries)
    exact, expected = Shard.whole(item, 0), Shard.whole(rounded, 0).digest()
    assert exact.digest(torch.bfloat16) == expected
    assert exact.digest() != expected


def test_a_part_is_written_in_its_owners_dtype() -> None:
    item = frozen(MASKS["rows"])
    half = torch.zeros(42, dtype=torch.bfloat16)
    shard = Shard.part(item, 0, half, 0, (42,), 0)
    shard.write(torch.full((shard.entries.count,), 1 / 3, dtype=torch.float64))
    assert set(half.tolist()) == {0.0, torch.tensor(1 / 3).bfloat16().item()}
