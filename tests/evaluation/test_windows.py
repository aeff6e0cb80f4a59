"""Windows against lm-evaluation-harness's own, and what holds for any of them."""

import pytest

from freezetrain.evaluation import Document
from freezetrain.evaluation.documents import batches, windows

CASES = [
    (tokens, max_length, overlap)
    for tokens in (1, 2, 7, 8, 9, 23, 64)
    for max_length in (1, 2, 8, 64)
    for overlap in (1, 3, 8)
    if overlap <= max_length
]


def cut(tokens, max_length, overlap):
    ids = list(range(100, 101 + tokens))
    return ids, list(windows(3, Document(ids, 1), max_length, overlap))


@pytest.mark.parametrize(("tokens", "max_length", "overlap"), CASES)
def test_they_are_those_of_lm_evaluation_harness(tokens, max_length, overlap):
    harness = pytest.importorskip("lm_eval.utils", reason="lm_eval is not installed")
    ids, found = cut(tokens, max_length, overlap)
    theirs = harness.get_rolling_token_windows(ids[1:], ids[0], max_length, overlap)
    ours = [(w.ids[:-1], w.ids[len(w.ids) - w.predicted :]) for w in found]
    assert ours == [(list(given), list(predicted)) for given, predicted in theirs]


@pytest.mark.parametrize(("tokens", "max_length", "overlap"), CASES)
def test_each_token_is_predicted_once_from_what_stands_before_it(tokens, max_length, overlap):
    ids, found = cut(tokens, max_length, overlap)
    assert [i for w in found for i in w.ids[len(w.ids) - w.predicted :]] == ids[1:]
    for number, window in enumerate(found):
        assert window.document == 3
        assert len(window.ids) - 1 <= max_length
        start = ids.index(window.ids[0])
        assert window.ids == ids[start : start + len(window.ids)]
        context = len(window.ids) - window.predicted
        assert context >= (overlap if number else 1)


def test_batches_hold_all_in_order_and_keep_to_the_budget():
    lengths = [9, 9, 7, 4, 4, 4, 2, 2, 2, 2]
    every = [next(windows(n, Document(list(range(x)), 1), 64)) for n, x in enumerate(lengths)]
    for budget in (1, 8, 17, 1000):
        found = list(batches(every, budget))
        assert [window for batch in found for window in batch] == every
        for batch in found:
            assert len(batch) == 1 or len(batch) * (len(batch[0].ids) - 1) <= budget
