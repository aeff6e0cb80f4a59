"""Tokens that one model lost and won against another, against loops over whole logits."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from heads import VOCABULARY, chunks_of, model_with

from freezetrain.errors import UserError
from freezetrain.evaluation import Document, DocumentSums, evaluate_documents, forgetting
from freezetrain.evaluation.hits import Flips, Hits
from freezetrain.evaluation.losses import forgetting_table

LENGTHS = {"en": [2, 17, 3, 31, 9], "de": [24], "sw": [5, 5, 12]}
WINDOW, OVERLAP = 11, 4


def documents(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        language: [
            Document(torch.randint(VOCABULARY, (n,), generator=generator).tolist(), 3 * n)
            for n in sizes
        ]
        for language, sizes in LENGTHS.items()
    }


def two_models(name):
    """A base, and a model with other weights."""
    base, adapted = model_with(name, torch.float32), model_with(name, torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in adapted.parameters():
            weight.add_(0.4 * torch.randn_like(weight))
    return base, adapted


@torch.no_grad()
def said_by(*models):
    """Documents of which each is mostly what one of ``models`` ranks first."""
    texts = documents()
    for language, some in texts.items():
        for number, document in enumerate(some):
            ids, model = document.ids[:1], models[number % len(models)]
            while len(ids) < len(document.ids):
                ranked = model(torch.tensor([ids[-WINDOW:]])).logits[0, -1].topk(2).indices
                ids.append(int(ranked[int(len(ids) % 3 == 0)]))
            texts[language][number] = Document(ids, document.bytes)
    return texts


@torch.no_grad()
def right(model, document):
    """Whether each token is the argmax of whole logits, from its own forward pass."""
    found = []
    while len(found) < document.tokens:
        done = len(found)
        new = min(document.tokens - done, WINDOW - OVERLAP + 1 if done else WINDOW)
        first = max(0, done + new - WINDOW)
        for place in range(done + 1, done + new + 1):
            logits = model(torch.tensor([document.ids[first:place]])).logits[0, -1]
            found.append(int(logits.argmax()) == document.ids[place])
    return found


def evaluated(model, texts):
    return evaluate_documents(model, texts, max_length=WINDOW, overlap=OVERLAP, batch_tokens=30)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "name", ["gemma2", *(pytest.param(n, marks=pytest.mark.exhaustive) for n in ("bias", "cohere"))]
)
def test_flips_are_those_of_a_loop_over_whole_logits(name, whole, monkeypatch):
    chunks_of(3, monkeypatch)
    if whole:
        monkeypatch.setattr("freezetrain.evaluation.perplexity.find_head", lambda _: None)
    base, adapted = two_models(name)
    texts = said_by(base, adapted)
    before, after = evaluated(base, texts), evaluated(adapted, texts)
    change = forgetting(before, after, "sw")
    assert list(change.flips) == [*LENGTHS]
    for language, flips in change.flips.items():
        pairs = [
            pair
            for document in texts[language]
            for pair in zip(right(base, document), right(adapted, document), strict=True)
        ]
        assert flips.lost == pairs.count((True, False))
        assert flips.won == pairs.count((False, True))
        gained = after[language].correct.sum() - before[language].correct.sum()
        assert flips.won - flips.lost == gained
        assert flips.lost > 0
    assert sum(flips.won for flips in change.flips.values()) > 0


def test_a_subsample_and_json():
    base, adapted = two_models("llama")
    texts = said_by(base, adapted)
    before, after = (evaluated(model, texts)["en"] for model in (base, adapted))
    chosen = [4, 1]
    some = {"en": [texts["en"][number] for number in chosen]}
    expected = [evaluated(model, some)["en"] for model in (base, adapted)]
    taken = [
        DocumentSums.from_dict(json.loads(json.dumps(sums.to_dict()))).take(chosen)
        for sums in (before, after)
    ]
    flips = taken[0].hits.flips(taken[1].hits)
    assert flips == expected[0].hits.flips(expected[1].hits)
    assert flips.lost > 0
    assert len(before.hits.bits) == -(-sum(n - 1 for n in LENGTHS["en"]) // 8)  # a bit a token


def test_other_tokens_are_not_compared_and_the_table_says_so():
    model = model_with("llama", torch.float32)
    before, after = evaluated(model, documents()), evaluated(model, documents(seed=2))
    change = forgetting(before, after, "sw")  # as many tokens in each document, and not the same
    assert change.flips == {}
    assert {one.perplexity_ratio for one in change.languages.values()} == {None}
    figures = [{n: sums.figures() for n, sums in of.items()} for of in (before, after)]
    table = forgetting_table(*figures, "sw", result=change, flips=True)
    assert "not counted: base and model have other tokens" in table.note
    assert not any("lost" in column.title for column in table.columns)


def test_the_table_has_their_shares():
    base, adapted = two_models("llama")
    texts = said_by(base, adapted)
    sums = evaluated(base, texts), evaluated(adapted, texts)
    change = forgetting(*sums, "sw")
    figures = [{n: one.figures() for n, one in of.items()} for of in sums]
    table = forgetting_table(*figures, "sw", result=change, flips=True)
    titles = [column.title for column in table.columns]
    for cells in table.cells():
        language = cells[0].text.removesuffix(" (target)")
        tokens = sum(n - 1 for n in LENGTHS[language])
        for what in ("lost", "won"):
            share = getattr(change.flips[language], what) / tokens
            assert cells[titles.index(what)].key == share


def test_without_what_is_ranked_first_nothing_is_said():
    model = model_with("llama", torch.float32)
    sums = evaluated(model, documents())
    without = {language: replace(one, hits=None) for language, one in sums.items()}
    assert forgetting(without, sums).flips == {}
    assert forgetting(sums, sums).flips == {language: Flips(0, 0) for language in LENGTHS}


def test_hits_of_other_documents_are_refused():
    texts = documents()["en"]
    hits = Hits.of(texts, np.zeros(sum(n - 1 for n in LENGTHS["en"]), bool))
    with pytest.raises(UserError, match="a bit for each of 57 tokens, got 5 and 8"):
        replace(hits, bits=hits.bits[:1])
    with pytest.raises(UserError, match="hits of the same documents as the sums"):
        DocumentSums(np.ones(5), np.ones(5), np.ones(5), np.ones(5), hits)
