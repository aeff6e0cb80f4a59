"""Fullest rows and columns, and recurring dimensions, against sets and plain loops."""

from collections import Counter

import pytest
import torch
from decoders import tiny_gpt2, tiny_mixtral

from freezetrain.errors import UserError
from freezetrain.regions import Region
from freezetrain.regions.slices import denser_directions, fullest, random_slices, recurring

UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"


def planted(model, **slices):
    """Half of the entries of some rows or columns, and a few entries anywhere."""
    masks = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and ".layers." in name:
            masks[name] = torch.rand(parameter.shape, generator=torch.manual_seed(1)) < 0.02
    masks[UP][::2, slices.get("column", 4)] = True
    masks[DOWN][slices.get("row", 9), ::2] = True
    return Region.from_masks(masks)


def test_planted_rows_and_columns_are_found(model):
    region = planted(model)
    directions = denser_directions(region, model, 0.05)
    assert directions["mlp.up_proj"] == "columns"
    assert directions["mlp.down_proj"] == "rows"
    found = fullest(region, 0.05, model)
    assert found[UP].mask()[:, 4].all()
    assert found[UP].count == 24
    assert found[DOWN].mask()[9].all()
    assert found[DOWN].count == 24
    assert found.made["directions"] == directions


def test_conv1d_is_seen_as_the_layer_multiplies():
    """Output feature 7 of c_fc is a column of the stored tensor."""
    model = tiny_gpt2()
    name = "transformer.h.0.mlp.c_fc.weight"  # [16 in, 24 out]
    mask = torch.zeros(16, 24, dtype=torch.bool)
    mask[:12, 7] = True
    region = Region.from_masks({name: mask})
    assert denser_directions(region, model) == {"mlp.c_fc": "rows"}
    whole = fullest(region, 0.01, model)[name].mask()
    assert whole[:, 7].all()
    assert whole.sum() == 16


def test_random_slices_are_as_many_in_the_same_direction_and_repeat(model):
    region = planted(model)
    like = fullest(region, 0.2, model)
    control = random_slices(region, 0.2, model, seed=3)
    assert control == random_slices(region, 0.2, model, seed=3)
    assert control != random_slices(region, 0.2, model, seed=4)
    assert control != like
    for name, entries in like.items():
        mine = control[name].mask()
        assert mine.sum() == entries.count
        lines = mine.all(1).sum() * mine.shape[1], mine.all(0).sum() * mine.shape[0]
        assert entries.count in lines


def test_recurring_against_plain_loops(model):
    """Columns of what reads from the stream, rows of what writes to it."""
    regions = {"a": planted(model), "b": planted(model, column=11, row=4)}
    times, possible, at_random = Counter(), 0, 0.0
    for region in regions.values():
        for name, mask in region.masks().items():
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            counts = [int(n) for n in mask.sum(1 if writes else 0)]
            taken = max(1, int(0.1 * 16 + 0.5))
            order = sorted(range(16), key=lambda place: (-counts[place], place))[:taken]
            times.update(place for place in order if counts[place])
            possible += 1
            at_random += taken / 16
    found, could, expected = recurring(regions, model, 0.1)
    assert {one.dimension: one.times for one in found} == dict(times)
    assert [one.times for one in found] == sorted(times.values(), reverse=True)
    assert (could, expected) == (possible, pytest.approx(at_random))
    four = next(one for one in found if one.dimension == 4)
    assert {"mlp.up_proj", "mlp.down_proj"} <= set(four.kinds)
    assert four.regions == ["a", "b"]
    assert four.layers == [0, 1]


def test_entries_of_experts_count_together():
    """No expert alone has most of its entries in dimension 6, all of them together do."""
    model = tiny_mixtral()
    name = "model.layers.0.mlp.experts.gate_up_proj"
    mask = torch.zeros(3, 48, 16, dtype=torch.bool)
    for expert in range(3):
        mask[expert, :10, expert] = True
        mask[expert, :8, 6] = True
    found, possible, _ = recurring({"r": Region.from_masks({name: mask})}, model, 0.01)
    assert [(one.dimension, one.times) for one in found] == [(6, 1)]
    assert possible == 1


def test_refusals(model):
    vectors = Region.tensors(model, ["*norm.weight"])
    with pytest.raises(UserError, match="expected a region with entries in matrices"):
        fullest(vectors, 0.01, model)
    for top in (0, 1.5):
        with pytest.raises(UserError, match="expected a top share above 0"):
            fullest(planted(model), top, model)
        with pytest.raises(UserError, match="expected a top share above 0"):
            recurring({}, model, top)
