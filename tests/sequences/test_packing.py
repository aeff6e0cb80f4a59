"""Packing against plain Python over the list of all tokens."""

import numpy as np
import pytest

from freezetrain.data.packing import Packed
from freezetrain.errors import UserError

DOCUMENTS = [
    [0, 5, 6, 7, 1],
    [0, 8, 1],
    [0, *range(10, 23), 1],
    [0, 1],
    [0, 9, 9, 9, 1],
    [0, 30, 1],
]


def reference(documents, length, document_mask):
    """For each sequence of `length` its inputs, labels and positions, by a loop over places."""
    stream = [(token, place) for document in documents for place, token in enumerate(document)]
    total = len(stream)
    sequences = []
    for first in range(0, total, length):
        ids, labels, positions = [], [], []
        for place in range(first, first + length):
            token, inside = stream[place % total]
            ids.append(token)
            follows = place + 1 < total
            crosses = follows and stream[place + 1][1] == 0
            labels.append(
                stream[place + 1][0] if follows and not (document_mask and crosses) else -100
            )
            begins = place == first or inside == 0
            positions.append(0 if begins else positions[-1] + 1)
        sequences.append((ids, labels, positions))
    return sequences


@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize("length", [2, 3, 4, 5, 8, 11, 16, 17, 32, 33])
def test_packing_equals_the_reference(make_store, length, document_mask):
    store = make_store(DOCUMENTS, pieces=3)
    packed = Packed(store, length, document_mask)
    expected = reference(DOCUMENTS, length, document_mask)
    assert len(packed) == len(expected)
    counts = packed.labels(np.arange(len(packed)))
    for number, (ids, labels, positions) in enumerate(expected):
        got = packed.sequence(number)
        assert all(value.dtype == np.int64 for value in got.values())
        assert got["input_ids"].tolist() == ids
        assert got["labels"].tolist() == labels
        assert ("position_ids" in got) == document_mask
        if document_mask:
            assert got["position_ids"].tolist() == positions
        assert counts[number] == sum(label != -100 for label in labels)


@pytest.mark.parametrize("length", [2, 5, 7, 33])
def test_every_token_is_an_input_once_and_a_label_once_but_the_first(make_store, length):
    # Tokens that are all different, so that each can be counted.
    documents = [list(range(0, 5)), list(range(5, 20)), list(range(20, 33))]
    packed = Packed(make_store(documents), length)
    sequences = [packed.sequence(number) for number in range(len(packed))]
    inputs = [token for one in sequences for token in one["input_ids"].tolist()]
    labels = [label for one in sequences for label in one["labels"].tolist() if label != -100]
    assert inputs[:33] == list(range(33))
    assert inputs[33:] == list(range(len(inputs) - 33))  # the fill
    assert labels == list(range(1, 33))


def test_masked_labels_are_all_tokens_but_each_documents_first(make_store):
    packed = Packed(make_store(DOCUMENTS), 6, document_mask=True)
    labels = [
        label
        for number in range(len(packed))
        for label in packed.sequence(number)["labels"].tolist()
        if label != -100
    ]
    assert labels == [token for document in DOCUMENTS for token in document[1:]]


def test_too_little_text_is_refused(make_store):
    with pytest.raises(
        UserError, match=r"language 'xx' has 4 tokens, fewer than one sequence of 5"
    ):
        Packed(make_store([[0, 1], [2, 3]]), 5)
