"""What a step is trained on, whatever the ranks, micro-batches and restarts."""

import hashlib

import numpy as np
import pytest
import torch

from freezetrain.data.order import Order, Pool
from freezetrain.data.packing import Packed, SequenceLoader
from freezetrain.errors import UserError
from freezetrain.recipe.optimization import Optimization

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
    sizes = {name: len(one) for name, one in packed.items()}
    replayed = [Pool(("en",), 1.0)]
    order = Order(sizes, [Pool(("zh",), 1.0)], STEPS * STEP, seed, replayed, share, 20 * STEP)
    return SequenceLoader(packed, order, settings, rank, world)


def stream(loaders):
    """Batches of all ranks, as they follow each other in the order: rank by rank."""
    for batches in zip(*loaders, strict=True):
        yield from batches


def hashes(batches, per_step):
    """One hash for each optimizer step, of all that is in its batches."""
    found, rows = [], []
    for batch in batches:
        assert batch["step_labels"].dtype == torch.int64
        names = [name for name in sorted(batch) if name != "step_labels"]
        for row in range(len(batch["input_ids"])):
            rows.append(torch.cat([batch[name][row] for name in names]))
        if len(rows) == per_step:
            content = torch.stack(rows).numpy().tobytes() + repr(batch["step_labels"]).encode()
            found.append(hashlib.sha256(content).hexdigest())
            rows = []
    assert not rows
    return found


def test_batches_are_the_orders_sequences(languages):
    one = loader(languages, micro_batch=4)
    packed = {name: Packed(store, 8, True) for name, store in languages.items()}
    language, sequence = one._order.places(0, STEPS * STEP)
    for number, batch in enumerate(one):
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
    assert number == len(one) - 1 == STEPS * 2 - 1


@pytest.mark.parametrize("mask", [False, True])
def test_steps_do_not_depend_on_ranks_and_micro_batches(languages, mask):
    whole = hashes(loader(languages, mask=mask), STEP)
    assert len(set(whole)) == STEPS
    for world in (1, 2, 4):
        for micro_batch in (1, 2, 4, 8):
            if STEP % (world * micro_batch):
                continue
            ranks = [loader(languages, rank, world, micro_batch, mask) for rank in range(world)]
            assert [len(one) for one in ranks] == [STEPS * STEP // (world * micro_batch)] * world
            assert hashes(stream(ranks), STEP) == whole


def test_resumed_at_every_tenth_step_by_other_ranks(languages):
    """1 → 2 → 1 ranks, the checkpoint of one being what all go on from."""
    whole = hashes(loader(languages), STEP)
    state, seen = loader(languages).state_dict(), []
    for first, (world, micro_batch) in zip((0, 10, 20), ((1, 2), (2, 1), (1, 4)), strict=True):
        ranks = [loader(languages, rank, world, micro_batch) for rank in range(world)]
        for one in ranks:
            one.load_state_dict(state)
        batches, together = stream(ranks), []
        while len(together) * micro_batch < 10 * STEP:
            together.append(next(batches))
        states = [one.state_dict() for one in ranks]
        assert all(one == states[0] for one in states)
        state = states[0]
        assert state["sequences"] == (first + 10) * STEP
        seen += hashes(together, STEP)
    assert seen == whole


def test_resumed_inside_a_step(languages):
    one = loader(languages)
    batches = iter(one)
    before = [next(batches) for _ in range(5)]  # one step and a quarter
    state = one.state_dict()
    ranks = [loader(languages, rank, 2, 1) for rank in range(2)]
    for other in ranks:
        other.load_state_dict(state)
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
