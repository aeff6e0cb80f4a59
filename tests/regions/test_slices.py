"""Rows and columns: concentration, fullest and recurring ones, against sets and plain loops."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from decoders import tiny_gpt2, tiny_mixtral

from freezetrain.errors import UserError
from freezetrain.regions import Entries, Region, concentration
from freezetrain.regions.slices import (
    denser_directions,
    fullest,
    fullest_slices,
    gini,
    random_slices,
    recurring,
    slice_counts,
)


def reference(mask, top):
    """By numpy, from the definition."""
    shares = []
    for axis in (1, 0):
        counts = np.sort(mask.sum(axis=axis))[::-1]
        fullest = max(1, int(top * len(counts) + 0.5))
        shares.append(counts[:fullest].sum() / mask.sum())
    return tuple(shares)


def random_mask(*shape, seed=0):
    mask = np.random.default_rng(seed).random(shape) < 0.1
    mask[3] |= np.random.default_rng(seed + 1).random(shape[1:]) < 0.7
    return mask


@pytest.mark.parametrize("top", [0.05, 0.3, 1.0])
def test_against_numpy(top):
    mask = random_mask(40, 60)
    shares = concentration(Entries.from_mask(torch.from_numpy(mask)), top)
    assert shares == pytest.approx(reference(mask, top))


def test_a_transposed_matrix_has_the_rows_and_columns_of_the_layer():
    mask = random_mask(40, 60)
    stored = Entries.from_mask(torch.from_numpy(mask.T.copy()))
    assert concentration(stored, 0.05, input_dim=-2) == pytest.approx(reference(mask, 0.05))


def test_counts_are_those_of_sets_also_for_experts():
    mask = random_mask(4, 5, 7)
    places = set(zip(*mask.nonzero(), strict=True))
    for input_dim in (-1, -2):
        rows, columns = slice_counts(Entries.from_mask(torch.from_numpy(mask)), input_dim)
        if input_dim == -2:
            rows, columns = columns, rows  # now of dimensions -2 and -1
        assert (tuple(rows.shape), tuple(columns.shape)) == ((4, 5), (4, 7))
        for expert, line in np.ndindex(4, 5):
            assert rows[expert, line] == sum(p[:2] == (expert, line) for p in places)
        for expert, across in np.ndindex(4, 7):
            assert columns[expert, across] == sum(p[::2] == (expert, across) for p in places)


def test_one_row_and_one_column():
    assert concentration(Entries.from_rows((20, 40), torch.tensor([7]))) == (1.0, 0.05)
    assert concentration(Entries.from_columns((20, 40), torch.tensor([7]))) == (0.05, 1.0)


def test_empty_region():
    assert concentration(Entries.empty((20, 40))) == (0.0, 0.0)


def test_a_vector_is_refused():
    with pytest.raises(UserError, match=r"expected a matrix.*got shape \[4\]"):
        concentration(Entries.whole((4,)))


def test_fullest_are_the_first_of_equals_and_never_empty():
    counts = torch.tensor([2, 5, 0, 5, 2, 0])
    assert fullest_slices(counts, 0.5).tolist() == [0, 1, 3]
    assert fullest_slices(counts, 1.0).tolist() == [0, 1, 3, 4]
    assert fullest_slices(counts, 0.01).tolist() == [1]


@pytest.mark.parametrize("values", [[3, 0, 1, 1, 7], [4, 4, 4], [0, 0, 9], [1], list(range(20))])
def test_gini_is_half_the_mean_difference_over_the_mean(values):
    differences = [abs(a - b) for a, b in itertools.product(values, values)]
    expected = sum(differences) / len(values) ** 2 / 2 / (sum(values) / len(values))
    assert gini(torch.tensor(values)) == pytest.approx(expected, abs=1e-12)


def test_gini_of_nothing_and_of_all_in_one():
    assert gini(torch.zeros(4, dtype=torch.int64)) == 0
    assert gini(torch.tensor([0, 0, 0, 5])) == pytest.approx(3 / 4)


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
    whole = fullest(region, 0.05, model)
    assert whole[UP].mask()[:, 4].all()
    assert whole[UP].count == 24
    assert whole[DOWN].mask()[9].all()
    assert whole[DOWN].count == 24
    assert whole.made["directions"] == directions


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
    dimensions, could, expected = recurring(regions, model, 0.1)
    assert {item.dimension: item.times for item in dimensions} == dict(times)
    assert [item.times for item in dimensions] == sorted(times.values(), reverse=True)
    assert (could, expected) == (possible, pytest.approx(at_random))
    four = next(item for item in dimensions if item.dimension == 4)
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
    dimensions, possible, _ = recurring({"r": Region.from_masks({name: mask})}, model, 0.01)
    assert [(item.dimension, item.times) for item in dimensions] == [(6, 1)]
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
