"""Both trainers do the same on the same sequences, and the table says what was measured."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.memory import make_model
from benchmarks.throughput import (
    CALLBACK,
    FREEZETRAIN,
    FROZEN,
    TRAINER,
    WAYS,
    Job,
    documents,
    most_held,
    recipe,
    rows,
    work,
)
from freezetrain.regions import Region
from freezetrain.training.data import read_data

pytestmark = pytest.mark.exhaustive

LENGTH, BATCH, STEPS, TURNS = 64, 2, 2, 3


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    sizes = {"intermediate_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 512}
    make_model(folder, hidden_size=16, rows=6144, **sizes)
    region = folder / "region.safetensors"
    return Job(folder, region, False, "cpu", LENGTH, BATCH, turns=TURNS, steps=STEPS)


class Pipe:
    """The other end of it: lets a training have its turns, and then end."""

    def __init__(self):
        self.answers, self.left = [], TURNS

    def recv(self):
        self.left -= 1
        return "turn" if self.left >= 0 else "end"

    def send(self, answer):
        self.answers.append(answer)


@pytest.fixture(scope="module")
def answers(job, tmp_path_factory):
    """Of each way, trained in this process."""
    found = {}
    for way in WAYS:
        pipe = Pipe()
        work(way, job, tmp_path_factory.mktemp("run"), pipe)
        found[way] = pipe.answers
    return found


def counts(answers):
    """Tokens and places of each turn."""
    assert all(spent > 0 for _, _, spent in answers[2:-1])
    return [(tokens, places) for tokens, places, _ in answers[2:-1]]


def test_both_learn_the_same_from_the_same_sequences(answers):
    for way in WAYS:
        assert answers[way][:2] == ["started", "ready"]
        assert len(counts(answers[way])) == TURNS
        assert counts(answers[way]) == counts(answers[TRAINER])
    loss, frozen, *others = (
        answers[way][-1][0] for way in (FREEZETRAIN, FROZEN, TRAINER, CALLBACK)
    )
    assert others == pytest.approx([loss, frozen], abs=1e-6)
    assert loss != pytest.approx(frozen, abs=1e-6)


def test_most_memory_is_that_of_the_process(job):
    held = most_held("cpu")
    assert held > 100e6  # torch alone
    there = torch.ones(held // 4 + 25_000_000)  # more than there ever was
    assert most_held("cpu") >= there.nbytes


def test_only_what_has_a_label_counts(job, answers, tmp_path):
    loader = read_data(recipe(job, tmp_path), AutoTokenizer.from_pretrained(job.model), 1)
    batches = iter(loader.train_dataloader())
    labels = [int((next(batches)["labels"] != -100).sum()) for _ in range(2 + STEPS * TURNS)]
    turns = [sum(labels[at : at + STEPS]) for at in range(2, len(labels), STEPS)]
    assert counts(answers[FREEZETRAIN]) == [(count, STEPS * BATCH * LENGTH) for count in turns]


def test_documents_are_padded_to_the_longest(job, tmp_path):
    pipe = Pipe()
    work(TRAINER, replace(job, documents=True, sequence_length=512), tmp_path, pipe)
    tokens, places = map(sum, zip(*counts(pipe.answers), strict=True))
    rows = TURNS * STEPS * BATCH
    assert tokens + rows < places < rows * 512  # of each row the first token has no label


def test_error_is_handed_over(job, tmp_path):
    pipe = Pipe()
    work(TRAINER, replace(job, model=tmp_path / "none"), tmp_path, pipe)
    (error,) = pipe.answers
    assert isinstance(error, RuntimeError)
    assert TRAINER in str(error)


def test_region_is_of_a_hundredth(job):
    region = Region.load(job.region)
    weights = 2 * 6144 * 16 + 4 * 16 * 16 + 3 * 16 * 32  # and norms
    assert region.count == pytest.approx(0.01 * weights, abs=10)


def test_documents_are_whole_until_they_are_cut(job):
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    found = documents(tokenizer, 100_000)
    assert all(row["input_ids"][0] == tokenizer.bos_token_id for row in found)
    assert all(row["input_ids"][-1] == tokenizer.eos_token_id for row in found)
    cut = documents(tokenizer, LENGTH)
    assert max(len(row["input_ids"]) for row in cut) == LENGTH
    assert [row["input_ids"] for row in cut] == [row["input_ids"][:LENGTH] for row in found]


def made(packed, padded):
    """Figures of which freezetrain is so many times as fast."""

    def of(documents, ratio):
        spread = {"median": ratio, "low": ratio - 0.05, "high": ratio + 0.05}
        same = dict.fromkeys(WAYS, 1.0)
        return {
            "documents": documents,
            "parameters": 4_000_000,
            "sequence_length": 512,
            "batch": 8,
            "padding": dict.fromkeys(same, 0.25),
            "tokens_per_second": same,
            "speed": {FREEZETRAIN: spread, FROZEN: spread},
            "processor": {FREEZETRAIN: spread, FROZEN: spread},
            "peak_bytes": {TRAINER: 2e9, FREEZETRAIN: 1.5e9},
            "step_seconds": {**same, FREEZETRAIN: 1.5},
            "start_seconds": same,
            "loss_after": same,
        }

    return {"cases": [of(False, packed), of(True, padded)]}


@pytest.mark.parametrize(
    ("packed", "padded", "verdicts"),
    [(1.0, 1.5, [True, True]), (0.996, 1.01, [True, True]), (0.98, 1.0, [False, False])],
)
def test_verdicts_follow_from_the_medians(packed, padded, verdicts):
    table = rows(made(packed, padded))
    assert [row.met for row in table if row.goal] == verdicts
    for row in table:
        if row.met is False:
            assert "1500.0 ms against 1000.0 ms" in row.note
    assert table[2].figure.startswith(f"freezetrain {packed:.2f} (")
    assert table[3].figure == "HF Trainer 2 GB; freezetrain 1.5 GB"
    assert "25% of Trainer's places" in table[4].what


def test_a_gpu_has_no_processor_time():
    figures = made(1.0, 1.5)
    for case in figures["cases"]:
        case["processor"] = None
    assert not any("processor" in row.what for row in rows(figures))


def test_a_clear_miss_is_not_excused():
    table = rows(made(0.9, 2.0))
    assert "quartiles" not in table[0].note
    assert "quartiles" in rows(made(0.98, 2.0))[0].note


def test_trainings_that_differ_show():
    figures = made(1.0, 1.5)
    figures["cases"][0]["loss_after"] = {TRAINER: 2.0, FREEZETRAIN: 2.5, FROZEN: 9.0}
    assert rows(figures)[-1].figure == "5.0e-01 nats a token"
