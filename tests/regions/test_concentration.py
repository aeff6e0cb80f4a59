import numpy as np
import pytest
import torch

from freezetrain.regions import Entries, concentration


def reference(mask, top):
    """By numpy, from the definition."""
    shares = []
    for axis in (1, 0):
        counts = np.sort(mask.sum(axis=axis))[::-1]
        fullest = max(1, int(top * len(counts) + 0.5))
        shares.append(counts[:fullest].sum() / mask.sum())
    return tuple(shares)


@pytest.mark.parametrize("top", [0.05, 0.3, 1.0])
def test_against_numpy(top):
    mask = np.random.default_rng(0).random((40, 60)) < 0.1
    mask[3] |= np.random.default_rng(1).random(60) < 0.7
    found = concentration(Entries.from_mask(torch.from_numpy(mask)), top)
    assert found == pytest.approx(reference(mask, top))


def test_one_row_and_one_column():
    assert concentration(Entries.from_rows((20, 40), torch.tensor([7]))) == (1.0, 0.05)
    assert concentration(Entries.from_columns((20, 40), torch.tensor([7]))) == (0.05, 1.0)


def test_empty_region():
    assert concentration(Entries.empty((20, 40))) == (0.0, 0.0)
