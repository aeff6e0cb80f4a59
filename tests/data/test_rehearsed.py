"""Rehearsed sequences as rows of a run, against plain Python; the steps that hold them."""

import numpy as np
import pytest
import torch
from made_rehearsal import rehearse

from freezetrain.data.order import Mixed, Order, Pool
from freezetrain.data.packing import Packed, SequenceLoader
from freezetrain.data.rehearsed import STORED, Rehearsed
from freezetrain.recipe.optimization import Optimization
from freezetrain.rehearsal import Rehearsal, batch_kl, collate

LENGTHS = [9, 3, 8, 1, 4, 2, 2, 30]


@pytest.fixture(scope="module")
def rehearsal(model_folder, tmp_path_factory):
    return Rehearsal(rehearse(tmp_path_factory.mktemp("drawn"), model_folder, LENGTHS, k=5))


def rows_of(rehearsal, length, mask):
    """Sequences of each row: one, or as many as fit."""
    rows, room = [], 0
    for number in range(len(rehearsal)):
        tokens = min(length, int(rehearsal.lengths[number]))
        if not mask or tokens > room:
            rows.append([])
            room = length
        rows[-1].append(number)
        room -= tokens
    return rows


@pytest.mark.parametrize("loss", ["kl", "next_token"])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("length", [2, 5, 8, 9, 16, 40])
def test_rows_equal_the_reference(rehearsal, length, mask, loss):
    rehearsed = Rehearsed(rehearsal, length, mask, loss)
    rows = rows_of(rehearsal, length, mask)
    assert len(rehearsed) == len(rows)
    counts = rehearsed.labels(np.arange(len(rows)))
    compared = rehearsed.compared(np.arange(len(rows)))
    for number, sequences in enumerate(rows):
        ids, labels, positions = [], [], []
        stored = {name: [] for name in STORED}
        for sequence in (rehearsal[s] for s in sequences):
            tokens = sequence["input_ids"].tolist()
            cut = min(length, len(tokens))
            ids += tokens[:cut]
            labels += [*tokens[1:], -100][:cut] if loss == "next_token" else [-100] * cut
            positions += range(cut)
            for name in STORED:
                stored[name] += sequence[name][:cut].tolist()
        places, fill = len(ids), length - len(ids)
        got = rehearsed.sequence(number)
        assert got["input_ids"].tolist() == ids + [0] * fill
        assert got["labels"].tolist() == labels + [-100] * fill
        assert ("position_ids" in got) == mask
        if mask:
            assert got["position_ids"].tolist() == [*positions, *range(fill)]
        assert counts[number] == (places if loss == "kl" else sum(n != -100 for n in labels))
        assert compared[number] == (places if loss == "kl" else 0)
        assert ("kl_places" in got) == (loss == "kl")
        if loss == "kl":
            assert got["kl_places"].tolist() == list(range(places))
            assert got["top_tokens"].tolist() == stored["top_tokens"]
            for name in STORED[1:]:
                assert torch.from_numpy(got[name]).view(torch.float16).tolist() == stored[name]


STEP, STEPS, LENGTH = 8, 12, 16


def loader(rehearsal, store, rank=0, world=1, micro_batch=2, mask=False, targets=True):
    settings = Optimization(
        max_steps=STEPS, sequence_length=LENGTH, micro_batch=micro_batch, batch_tokens=STEP * LENGTH
    )
    packed = {
        "zh": Packed(store, LENGTH, mask),
        "/": Rehearsed(rehearsal, LENGTH, mask, "kl", targets),
    }
    sizes = {name: len(source) for name, source in packed.items()}
    drawn = Mixed([Pool(("/",), 1.0)], 0.2, STEPS * STEP)
    order = Order(sizes, [Pool(("zh",), 1.0)], STEPS * STEP, 0, [drawn])
    return SequenceLoader(packed, order, settings, rank, world)


@pytest.fixture
def store(make_store):
    rng = np.random.default_rng(0)
    return make_store([[0, *rng.integers(2, 400, 9).tolist(), 1] for _ in range(60)])


@pytest.mark.parametrize("mask", [False, True])
def test_steps_do_not_depend_on_ranks_and_micro_batches(rehearsal, store, mask):
    def of_steps(world, micro_batch):
        """What each step compares: by token before it, what is stored; and the counts."""
        steps = [[] for _ in range(STEPS)]
        loaders = [
            loader(rehearsal, store, rank, world, micro_batch, mask) for rank in range(world)
        ]
        for number, batches in enumerate(zip(*loaders, strict=True)):
            step = steps[number * world * micro_batch // STEP]
            for batch in batches:
                ids = batch["input_ids"].flatten()[batch["kl_places"]]
                step += [
                    (int(token), *(batch[name][place].tolist() for name in STORED))
                    for place, token in enumerate(ids)
                ]
                counts = int(batch["step_labels"]), int(batch["step_compared"])
            step.append(counts)
        # The counts stand at the end of each pass of all ranks.
        return [([p for p in step if len(p) > 2], step[-1]) for step in steps]

    whole = of_steps(1, 2)
    assert sum(count for _, (_, count) in whole) == sum(len(places) for places, _ in whole) > 100
    assert min(len(b["kl_places"]) for b in loader(rehearsal, store, micro_batch=1, mask=mask)) == 0
    for places, (labels, compared) in whole:
        assert len(places) == compared < labels
    for world, micro_batch in ((1, 8), (1, 1), (2, 2), (4, 1)):
        assert of_steps(world, micro_batch) == whole


def test_a_batch_compares_as_the_librarys_own_does(rehearsal, store):
    """The KL of random logits at the places of a batch, and of the same sequences collated."""
    for batch in loader(rehearsal, store, micro_batch=8):
        rows = torch.unique(batch["kl_places"] // LENGTH).tolist()
        if len(rows) > 1:
            break
    logits = torch.randn(8, LENGTH, 400)
    ours = batch_kl(logits, batch)
    counts = torch.bincount(batch["kl_places"] // LENGTH, minlength=8)[rows].tolist()
    sequences = [
        next(
            row
            for row in rehearsal
            if torch.equal(row["input_ids"][:LENGTH], batch["input_ids"][at, :count])
        )
        for at, count in zip(rows, counts, strict=True)
    ]
    cut = [{name: values[:LENGTH] for name, values in row.items()} for row in sequences]
    longest = max(len(row["input_ids"]) for row in cut)
    torch.testing.assert_close(ours, batch_kl(logits[rows, :longest], collate(cut)))


def test_another_rehearsal_or_use_of_it_is_another_digest(rehearsal, store, model_folder, tmp_path):
    other = Rehearsal(rehearse(tmp_path, model_folder, LENGTHS, k=5, seed=1))
    digests = {
        loader(rehearsal, store).digest,
        loader(other, store).digest,
        loader(rehearsal, store, targets=False).digest,
    }
    assert len(digests) == 3
