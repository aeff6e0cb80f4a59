"""Entries are written as numpy writes them, few or many, whatever the strides and the dtype."""

import numpy as np
import pytest
import torch

from freezetrain.regions.entries import ONE_THREAD, put

SHAPE = (400, 350)
COUNTS = [0, 1, ONE_THREAD - 1, ONE_THREAD, 100_000]


@pytest.fixture
def deterministic():
    """Writing to unique places is deterministic, so that a user may ask for it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool])
@pytest.mark.parametrize("one_value", [False, True])
@pytest.mark.parametrize("count", COUNTS)
def test_put_writes_what_numpy_writes_and_nothing_else(count, one_value, dtype, transposed):
    rng = np.random.default_rng(count)
    before = torch.from_numpy(rng.standard_normal(SHAPE)).to(dtype)
    index = rng.permutation(before.numel())[:count]
    values = torch.from_numpy(rng.integers(0, 2, count)).to(dtype)
    expected = before.numpy().copy()
    expected.flat[index] = 1 if one_value else values.numpy()
    tensor = before.T.clone(memory_format=torch.contiguous_format).T if transposed else before
    assert tensor.is_contiguous() != transposed

    put(tensor, torch.from_numpy(index), 1 if one_value else values)

    np.testing.assert_array_equal(tensor.numpy(), expected)
