"""Packing against plain Python over the list of all tokens; what a step is trained on, whatever
the ranks, micro-batches and restarts."""

import hashlib

import numpy as np
import pytest
import torch

from freezetrain.data.order import Mixed, Order, Pool
from freezetrain.data.packing import Drawn, Packed, SequenceLoader
from freezetrain.errors import UserError
from freezetrain.recipe.optimization import Optimization

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


DRAWN_FROM = [list(range(first, first + 7)) for first in range(0, 140, 7)]


def in_order(seed: int) -> list[list[int]]:
    drawn = torch.randperm(28, generator=torch.Generator().manual_seed(seed)).tolist()
    return [list(range(5 * number, 5 * number + 5)) for number in drawn]


def rows(batches) -> list[list[int]]:
    return [row for batch in batches for row in batch.tolist()]


@pytest.mark.parametrize("seed", [0, 1])
def test_whole_sequences_once_each_in_the_order_of_the_seed(make_store, seed):
    store = make_store(DRAWN_FROM, pieces=3)
    drawn = Drawn(store, 5, 100, seed=seed)
    assert len(drawn) == 28
    batches = list(drawn.batches(8))
    assert [batch.shape for batch in batches] == [(8, 5)] * 3 + [(4, 5)]
    assert all(batch.dtype == torch.int64 for batch in batches)
    assert rows(batches) == in_order(seed)
    assert len(Drawn(store, 9, 100)) == 15  # 5 tokens are left out


def test_those_left_out_are_those_that_another_run_has_drawn(make_store):
    store = make_store(DRAWN_FROM)
    first, second = Drawn(store, 5, 14, seed=3), Drawn(store, 5, 14, first=14, seed=3)
    assert rows(first.batches(4)) + rows(second.batches(4)) == in_order(3)
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
    drawn = Drawn(make_store(DRAWN_FROM), 5, 13)
    batches = list(drawn.batches(6, marks))
    assert list(map(len, batches)) == sizes
    assert rows(batches) == in_order(0)[:13]


def test_too_little_text_is_refused(make_store):
    store = make_store(DRAWN_FROM)
    with pytest.raises(UserError, match="'xx' has 140 tokens, fewer than one sequence of 141"):
        Packed(store, 141)
    with pytest.raises(UserError, match="'xx' has 140 tokens, fewer than one sequence of 141"):
        Drawn(store, 141, 1)
    with pytest.raises(UserError, match=r"'xx' has 28 sequences of 5 tokens and first leaves out"):
        Drawn(store, 5, 1, first=28)


STEPS, STEP = 30, 8  # optimizer steps, sequences in each


@pytest.fixture
def languages(make_store):
    rng = np.random.default_rng(0)

    def documents(count):
        return [[0, *rng.integers(2, 400, rng.integers(1, 20)).tolist(), 1] for _ in range(count)]

    return {"zh": make_store(documents(70), 2), "en": make_store(documents(30), 1)}


def loader(languages, rank=0, world=1, micro_batch=2, mask=True, seed=0, share=0.25):
    settings = Optimization(
        max_steps=STEPS,
        sequence_length=8,
        micro_batch=micro_batch,
        batch_tokens=STEP * 8,
        document_mask=mask,
    )
    packed = {name: Packed(store, 8, mask) for name, store in languages.items()}
    sizes = {name: len(sequences) for name, sequences in packed.items()}
    replayed = Mixed([Pool(("en",), 1.0)], share, 20 * STEP)
    order = Order(sizes, [Pool(("zh",), 1.0)], STEPS * STEP, seed, [replayed])
    return SequenceLoader(packed, order, settings, rank, world)


def stream(loaders):
    """Batches of all ranks, as they follow each other in the order: rank by rank."""
    for batches in zip(*loaders, strict=True):
        yield from batches


def hashes(batches, per_step):
    """One hash for each optimizer step, of all that is in its batches."""
    steps, rows = [], []
    for batch in batches:
        assert batch["step_labels"].dtype == torch.int64
        names = [name for name in sorted(batch) if name != "step_labels"]
        for row in range(len(batch["input_ids"])):
            rows.append(torch.cat([batch[name][row] for name in names]))
        if len(rows) == per_step:
            content = torch.stack(rows).numpy().tobytes() + repr(batch["step_labels"]).encode()
            steps.append(hashlib.sha256(content).hexdigest())
            rows = []
    assert not rows
    return steps


def test_batches_are_the_orders_sequences(languages):
    batches = loader(languages, micro_batch=4)
    packed = {name: Packed(store, 8, True) for name, store in languages.items()}
    language, sequence = batches._order.places(0, STEPS * STEP)
    for number, batch in enumerate(batches):
        labels = 0
        for place in range(number // 2 * STEP, (number // 2 + 1) * STEP):
            name = ("zh", "en")[language[place]]
            row = packed[name].sequence(int(sequence[place]))
            labels += int((row["labels"] != -100).sum())
            inside = place - number * 4
            if 0 <= inside < 4:
                for field, values in row.items():
                    assert batch[field].dtype == torch.int64
                    assert batch[field][inside].tolist() == values.tolist()
        assert int(batch["step_labels"]) == labels
        assert set(batch) == {"input_ids", "labels", "position_ids", "step_labels"}
    assert number == len(batches) - 1 == STEPS * 2 - 1


@pytest.mark.parametrize("mask", [False, True])
def test_steps_do_not_depend_on_ranks_and_micro_batches(languages, mask):
    whole = hashes(loader(languages, mask=mask), STEP)
    assert len(set(whole)) == STEPS
    for world in (1, 2, 4):
        for micro_batch in (1, 2, 4, 8):
            if STEP % (world * micro_batch):
                continue
            ranks = [loader(languages, rank, world, micro_batch, mask) for rank in range(world)]
            assert [len(rank) for rank in ranks] == [STEPS * STEP // (world * micro_batch)] * world
            assert hashes(stream(ranks), STEP) == whole


def test_resumed_at_every_tenth_step_by_other_ranks(languages):
    """1 → 2 → 1 ranks, the checkpoint of one being what all go on from."""
    whole = hashes(loader(languages), STEP)
    state, seen = loader(languages).state_dict(), []
    for first, (world, micro_batch) in zip((0, 10, 20), ((1, 2), (2, 1), (1, 4)), strict=True):
        ranks = [loader(languages, rank, world, micro_batch) for rank in range(world)]
        for rank in ranks:
            rank.load_state_dict(state)
        batches, ten_steps = stream(ranks), []
        while len(ten_steps) * micro_batch < 10 * STEP:
            ten_steps.append(next(batches))
        state = ranks[0].state_dict()
        assert all(rank.state_dict() == state for rank in ranks)
        assert state["sequences"] == (first + 10) * STEP
        seen += hashes(ten_steps, STEP)
    assert seen == whole


def test_resumed_inside_a_step(languages):
    stopped = loader(languages)
    batches = iter(stopped)
    before = [next(batches) for _ in range(5)]  # one step and a quarter
    state = stopped.state_dict()
    ranks = [loader(languages, rank, 2, 1) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(state)
    assert hashes([*before, *stream(ranks)], STEP) == hashes(loader(languages), STEP)
    with pytest.raises(UserError, match=r"after 10 sequences, inside an optimizer step, and 4"):
        loader(languages, micro_batch=4).load_state_dict(state)


def test_a_position_in_other_data_is_refused(languages, make_store):
    state = loader(languages).state_dict()
    loader(languages, rank=1, world=2, micro_batch=1).load_state_dict(state)
    english = languages["en"]
    documents = np.split(english.read(0, len(english)), english.starts(1, len(english)))
    documents[3][1] += 1
    other = make_store([document.tolist() for document in documents])
    assert len(other) == len(english)
    for changed in (
        loader({**languages, "en": other}),
        loader({**languages, "en": make_store([[0, 1]] * 50)}),
        loader(languages, mask=False),
        loader(languages, seed=1),
        loader(languages, share=0.5),
    ):
        with pytest.raises(UserError, match="changed since the checkpoint"):
            changed.load_state_dict(state)
