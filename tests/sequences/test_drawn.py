"""Sequences drawn for scoring, against the list of all tokens."""

import pytest
import torch

from freezetrain.data.packing import Drawn
from freezetrain.errors import UserError

DOCUMENTS = [list(range(first, first + 7)) for first in range(0, 140, 7)]
STREAM = list(range(140))  # 28 sequences of 5


def order(seed: int) -> list[list[int]]:
    drawn = torch.randperm(28, generator=torch.Generator().manual_seed(seed)).tolist()
    return [STREAM[5 * number : 5 * number + 5] for number in drawn]


def rows(batches) -> list[list[int]]:
    return [row for batch in batches for row in batch.tolist()]


@pytest.mark.parametrize("seed", [0, 1])
def test_whole_sequences_once_each_in_the_order_of_the_seed(make_store, seed):
    store = make_store(DOCUMENTS, pieces=3)
    drawn = Drawn(store, 5, 100, seed=seed)
    assert len(drawn) == 28
    batches = list(drawn.batches(8))
    assert [batch.shape for batch in batches] == [(8, 5)] * 3 + [(4, 5)]
    assert all(batch.dtype == torch.int64 for batch in batches)
    assert rows(batches) == order(seed)
    assert len(Drawn(store, 9, 100)) == 15  # 5 tokens are left out


def test_those_left_out_are_those_that_another_run_has_drawn(make_store):
    store = make_store(DOCUMENTS)
    first, second = Drawn(store, 5, 14, seed=3), Drawn(store, 5, 14, first=14, seed=3)
    assert rows(first.batches(4)) + rows(second.batches(4)) == order(3)
    assert len(Drawn(store, 5, 14, first=20)) == 8


@pytest.mark.parametrize(
    ("marks", "sizes"),
    [
        ([], [6, 6, 1]),
        ([6], [6, 6, 1]),
        ([8], [6, 2, 5]),
        ([1, 2, 12], [1, 1, 6, 4, 1]),
        ([13, 20], [6, 6, 1]),
    ],
)
def test_a_batch_ends_at_each_mark(make_store, marks, sizes):
    drawn = Drawn(make_store(DOCUMENTS), 5, 13)
    batches = list(drawn.batches(6, marks))
    assert list(map(len, batches)) == sizes
    assert rows(batches) == order(0)[:13]


def test_too_little_text_is_refused(make_store):
    store = make_store(DOCUMENTS)
    with pytest.raises(UserError, match="'xx' has 140 tokens, fewer than one sequence of 141"):
        Drawn(store, 141, 1)
    with pytest.raises(UserError, match=r"'xx' has 28 sequences of 5 tokens and first leaves out"):
        Drawn(store, 5, 1, first=28)
