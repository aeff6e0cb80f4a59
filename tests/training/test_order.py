from collections import Counter

import numpy as np
import pytest
import torch

from freezetrain.errors import UserError
from freezetrain.training.order import SequenceLoader, data_order


def test_pool_goes_through_whole_epochs():
    order = data_order({"a": 3, "b": 4}, {}, 21, seed=1)
    for epoch in order.reshape(3, 7):
        assert sorted(epoch) == list(range(7))
    assert not np.array_equal(order[:7], order[7:14])


def test_order_is_a_function_of_the_seed():
    sizes, weights = {"a": 5, "b": 9}, {"a": 1.0, "b": 2.0}
    one = data_order(sizes, weights, 50, seed=1)
    assert np.array_equal(one, data_order(sizes, weights, 50, seed=1))
    assert not np.array_equal(one, data_order(sizes, weights, 50, seed=2))


def test_a_longer_run_of_one_pool_starts_the_same():
    assert np.array_equal(
        data_order({"a": 8}, {}, 40, seed=3)[:20], data_order({"a": 8}, {}, 20, seed=3)
    )


def test_weights_are_shares_and_each_language_goes_through_its_epochs():
    order = data_order({"a": 10, "b": 1000}, {"a": 3.0, "b": 1.0}, 4000, seed=0)
    of_a = order[order < 10]
    assert 0.72 < len(of_a) / 4000 < 0.78
    counts = Counter(of_a.tolist())
    assert max(counts.values()) - min(counts.values()) <= 1
    of_b = order[order >= 10]
    assert of_b.min() >= 10
    assert of_b.max() < 1010
    assert len(set(of_b[:1000].tolist())) == min(1000, len(of_b))


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ({"a": 1.0, "bb": 1.0}, "'bb', which is not trained on"),
        ({"a": 1.0}, "'b' is missing"),
        ({"a": 1.0, "b": 0.0}, "must be a number above 0, got 0.0"),
        ({"a": 1.0, "b": float("inf")}, "must be a number above 0, got inf"),
        ({"a": 1.0, "b": float("nan")}, "must be a number above 0, got nan"),
    ],
)
def test_bad_weights_are_refused(weights, complaint):
    with pytest.raises(UserError, match=complaint):
        data_order({"a": 2, "b": 2}, weights, 4, seed=0)


SEQUENCES = torch.arange(40, dtype=torch.int32).view(20, 2)
ORDER = np.random.default_rng(0).permutation(20)


def test_ranks_together_see_the_order_once():
    loaders = [SequenceLoader(SEQUENCES, ORDER, 2, rank, 2) for rank in range(2)]
    assert [len(loader) for loader in loaders] == [5, 5]
    seen = [batch for pair in zip(*loaders, strict=True) for batch in pair]
    assert torch.equal(torch.cat(seen), SEQUENCES[ORDER].long())


def test_position_survives_a_restart_with_other_ranks():
    first = SequenceLoader(SEQUENCES, ORDER, 2)
    stream = iter(first)
    before = [next(stream) for _ in range(4)]
    rest = [SequenceLoader(SEQUENCES, ORDER, 2, rank, 2) for rank in range(2)]
    for loader in rest:
        loader.load_state_dict(first.state_dict())
    after = [batch for pair in zip(*rest, strict=True) for batch in pair]
    assert torch.equal(torch.cat([*before, *after]), SEQUENCES[ORDER].long())


def test_a_position_in_other_sequences_is_refused():
    state = SequenceLoader(SEQUENCES, ORDER, 2).state_dict()
    for changed in (
        SequenceLoader(SEQUENCES + 1, ORDER, 2),
        SequenceLoader(SEQUENCES, ORDER[::-1].copy(), 2),
    ):
        with pytest.raises(UserError, match="changed since the checkpoint"):
            changed.load_state_dict(state)
