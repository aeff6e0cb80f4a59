"""Concentration and Gini against sets and plain loops, in the layer's terms."""

import itertools

import numpy as np
import pytest
import torch

from freezetrain.errors import UserError
from freezetrain.regions import Entries, concentration
from freezetrain.regions.slices import fullest_slices, gini, slice_counts


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
    found = concentration(Entries.from_mask(torch.from_numpy(mask)), top)
    assert found == pytest.approx(reference(mask, top))


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
