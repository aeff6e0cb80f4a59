"""The loops do what they say, all places are counted, and the table says what was measured."""

import copy
import math
from statistics import fmean

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.evaluation import BASE, HARNESS, LONGEST, OURS, PADDED, measured, padded_loop, rows
from benchmarks.harness import Options

pytestmark = pytest.mark.exhaustive

# None repeats itself: the harness takes windows of equal tokens for one.
TEXTS = {
    "en": [" ".join(f"right {100 * n + k}" for k in range(1 + n)) for n in range(9)],
    "de": ["Jeder hat das Recht auf Leben.", "Niemand darf in Sklaverei gehalten werden."],
}
LENGTH, BATCH = 24, 8


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def ids(tokenizer):
    return {name: tokenizer(texts)["input_ids"] for name, texts in TEXTS.items()}


@pytest.fixture(scope="module")
def found(model, tokenizer):
    return measured(model, tokenizer, TEXTS, [LENGTH], Options(rounds=2))


@pytest.mark.parametrize("padding", ["max_length", True])
def test_loop_is_exp_of_the_mean_of_batch_means(model, tokenizer, ids, padding):
    def losses(document):
        kept = torch.tensor(document[:LENGTH])
        with torch.no_grad():
            log_p = model(input_ids=kept[None]).logits[0].double().log_softmax(-1)
        return [-log_p[place, token].item() for place, token in enumerate(kept[1:])]

    perplexities = padded_loop(model, tokenizer, TEXTS, LENGTH, padding)
    for language, documents in ids.items():
        batches = [documents[first : first + BATCH] for first in range(0, len(documents), BATCH)]
        means = [fmean(loss for document in of for loss in losses(document)) for of in batches]
        assert perplexities[language] == pytest.approx(math.exp(fmean(means)), rel=1e-5)


def test_tokens_and_places(found, ids):
    of = found["lengths"][str(LENGTH)]
    lengths = {name: [min(len(d), LENGTH) for d in documents] for name, documents in ids.items()}
    every = [len(document) for documents in ids.values() for document in documents]
    assert max(every) > LENGTH  # something is cut
    cut = sum(size - 1 for sizes in lengths.values() for size in sizes)
    assert of["tokens"] == {PADDED: cut, LONGEST: cut, OURS: sum(every), HARNESS: sum(every)}
    assert of["places"][PADDED] == len(every) * LENGTH
    longest = [
        len(sizes[first : first + BATCH]) * max(sizes[first : first + BATCH])
        for sizes in lengths.values()
        for first in range(0, len(sizes), BATCH)
    ]
    assert of["places"][LONGEST] == sum(longest)
    assert of["places"][OURS] >= sum(every)
    assert found["documents"] == len(every)


def test_evaluate_sums_what_the_harness_sums(found):
    assert found["lengths"][str(LENGTH)]["nll_over_harness"] == pytest.approx(1, rel=1e-6)


def test_speed_is_of_tokens_that_count(found):
    of = found["lengths"][str(LENGTH)]
    for way, times in of["times_as_fast"].items():
        ratios = [
            (of["tokens"][OURS] / own) / (of["tokens"][way] / other)
            for own, other in zip(of["seconds"][OURS], of["seconds"][way], strict=True)
        ]
        assert times["median"] == pytest.approx(fmean(ratios))


def test_verdicts_follow_from_the_medians(found):
    figures = copy.deepcopy(found)
    times = figures["lengths"][str(LENGTH)]["times_as_fast"]
    times[PADDED] = {"median": 3.0, "low": 2.9, "high": 3.1}
    times[LONGEST] = {"median": 2.99, "low": 2.9, "high": 3.1}
    about, padded, longest, harness, wrong = rows(figures)
    assert (padded.met, padded.note) == (True, "")
    assert longest.met is False
    assert "places a token" in longest.note
    assert [row.met for row in (about, harness, wrong)] == [None] * 3
    assert harness.what.endswith(HARNESS)
