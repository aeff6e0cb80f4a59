"""Effects of regions on a model in which disjoint weights carry two languages, and made figures."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from freezetrain.analysis.effects import (
    OwnAndOthers,
    dominance,
    effects_table,
    mean_effect,
    selectivity,
)
from freezetrain.errors import UserError
from freezetrain.evaluation import Document, Figures
from freezetrain.recipe.sources import EvaluationTexts
from freezetrain.regions import Region

SIZE, SURE = 5, 6.0  # tokens of a language; logit of the one that follows


class TwoLanguages(nn.Module):
    """Tokens 0 to 4 follow each other in a circle, and so do 5 to 9: each by its own columns."""

    def __init__(self):
        super().__init__()
        self.follows = nn.Linear(2 * SIZE, 2 * SIZE, bias=False)
        nn.init.zeros_(self.follows.weight)
        with torch.no_grad():
            for token in range(2 * SIZE):
                first = token - token % SIZE
                self.follows.weight[first + (token + 1) % SIZE, token] = SURE
        self.config = SimpleNamespace(max_position_embeddings=64)

    def forward(self, input_ids):
        known = nn.functional.one_hot(input_ids, 2 * SIZE).float()
        return SimpleNamespace(logits=self.follows(known))


def circle(first, length):
    return Document([first + place % SIZE for place in range(length)], bytes=2 * length)


@pytest.fixture
def documents():
    return {"a": [circle(0, 9), circle(0, 30)], "b": [circle(SIZE, 21)]}


def region_of(model, *columns):
    return Region.columns(model, {"follows.weight": list(columns)})


EVALUATION = EvaluationTexts(max_length=64)
KNOWN = math.log(1 + (2 * SIZE - 1) * math.exp(-SURE))  # NLL of a token that the model is sure of
GUESSED = math.log(2 * SIZE)


def test_planted_languages_are_told_apart(documents):
    model = TwoLanguages()
    regions = {"a": region_of(model, *range(SIZE)), "b": region_of(model, *range(SIZE, 2 * SIZE))}
    controls = {"a": region_of(model, 0, 5), "b": region_of(model, 6)}
    found = selectivity(model, documents, regions, controls, EVALUATION)
    a_tokens, a_bytes = 8 + 29, 18 + 60
    rise = (GUESSED - KNOWN) * a_tokens / a_bytes
    assert found.rise["a"]["a"] == pytest.approx(rise, rel=1e-5)
    assert found.rise["b"]["b"] == pytest.approx((GUESSED - KNOWN) * 20 / 42, rel=1e-5)
    assert found.rise["a"]["b"] == pytest.approx(0, abs=1e-7)
    assert found.rise["b"]["a"] == pytest.approx(0, abs=1e-7)
    first = sum(token % SIZE == 0 for text in documents["a"] for token in text.ids[:-1])
    assert found.control["a"]["a"] == pytest.approx((GUESSED - KNOWN) * first / a_bytes)
    assert found.entries == {"a": 50, "b": 50}
    assert (found.languages, found.evaluated) == (["a", "b"], ["a", "b"])
    assert (found.dominance.rows, found.dominance.columns) == (2, 2)
    assert not any(model.follows.weight[0, 0:4])  # as it was
    assert model.follows.weight[1, 0] == SURE


def test_swapped_regions_dominate_nowhere(documents):
    model = TwoLanguages()
    regions = {"b": region_of(model, *range(SIZE)), "a": region_of(model, *range(SIZE, 2 * SIZE))}
    found = selectivity(model, documents, regions, None, EVALUATION)
    assert found.control is None
    assert (found.dominance.rows, found.dominance.columns) == (0, 0)
    assert found.dominance.ratio == pytest.approx(0, abs=1e-6)


def test_dominance_of_made_figures():
    rise = {
        "x": {"x": 3.0, "y": 1.0, "z": 0.5, "more": 9.0},  # more has no region: it does not count
        "y": {"x": 0.2, "y": 2.0, "z": 2.5, "more": 9.0},
        "z": {"x": 0.1, "y": 1.0, "z": 4.0, "more": 9.0},
    }
    found = dominance(rise)
    assert (found.rows, found.columns, found.of) == (2, 3, 3)  # y's region hurts z more
    assert found.own == pytest.approx(3.0)
    assert found.other == pytest.approx(5.3 / 6)
    assert found.ratio == pytest.approx(3.0 / (5.3 / 6))
    assert found.languages["y"] == OwnAndOthers(2.0, 2.5, "z", pytest.approx(1.35))


def test_equals_do_not_dominate():
    found = dominance({"x": {"x": 1.0, "y": 1.0}, "y": {"x": 1.0, "y": 1.0}})
    assert (found.rows, found.columns) == (0, 0)


def test_one_language_has_no_other():
    found = dominance({"x": {"x": 1.0, "y": 4.0}})
    assert (found.rows, found.columns, found.other, found.ratio) == (1, 1, None, None)
    assert found.languages["x"].other is None


def test_others_that_gain_give_no_ratio():
    found = dominance({"x": {"x": 1.0, "y": -1.0}, "y": {"x": -1.0, "y": 1.0}})
    assert (found.other, found.ratio) == (-1.0, None)


def test_a_perplexity_past_the_float_range():
    finite, infinite = (Figures(nll, 10, 10) for nll in (20.0, 1e4))
    figures = {
        "nothing": {"en": finite},
        "seed 0": {"en": infinite},
        "seed 1": {"en": finite},
    }
    effect = mean_effect(figures, ["seed 0", "seed 1"])
    assert effect.languages["en"].perplexity is None
    assert effect.spread > 0
    ((*_, perplexity, _),) = effects_table("", figures["nothing"], {"random": effect}).cells()
    assert perplexity.text == "∞"


def test_refusals(documents):
    model = TwoLanguages()
    with pytest.raises(UserError, match="at least one language, got none"):
        selectivity(model, documents, {}, None, EVALUATION)
    with pytest.raises(UserError, match="region of language 'c' needs documents"):
        selectivity(model, documents, {"c": region_of(model, 1)}, None, EVALUATION)
