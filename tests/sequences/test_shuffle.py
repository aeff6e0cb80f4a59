import numpy as np
import pytest

from freezetrain.data.order import permuted


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 255, 256, 257, 1000, 70_000])
def test_every_item_once(size):
    for epoch in range(2):
        found = permuted(np.arange(size), size, (5, epoch))
        assert found.dtype == np.int64
        assert sorted(found.tolist()) == list(range(size))


def test_a_place_does_not_depend_on_what_else_is_asked():
    whole = permuted(np.arange(1000), 1000, (1, 2))
    for first in (0, 17, 990):
        assert permuted(np.arange(first, first + 10), 1000, (1, 2)).tolist() == (
            whole[first : first + 10].tolist()
        )


def test_sizes_beyond_memory():
    size = 10**12
    places = np.arange(size - 1000, size)
    found = permuted(places, size, (3,))
    assert len(set(found.tolist())) == 1000
    assert found.min() >= 0
    assert found.max() < size
    assert 0.4 < found.mean() / size < 0.6


def test_it_is_well_mixed():
    """Every item is as likely at every place, and neighbours are no closer than others."""
    size, keys = 7, 3000
    counts = np.zeros((size, size))
    for key in range(keys):
        counts[np.arange(size), permuted(np.arange(size), size, (key,))] += 1
    expected = keys / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 70  # of 36 degrees of freedom: exceeded by chance once in two thousand
    found = permuted(np.arange(100_000), 100_000, (1,))
    assert abs(np.abs(np.diff(found)).mean() / (100_000 / 3) - 1) < 0.02
    assert abs(np.corrcoef(found, np.arange(100_000))[0, 1]) < 0.02
