"""`perturb` against direct edits of a state dict and a plain loop for the loss."""

import math

import pytest
import torch
from plain_loss import edited, plain_figures

from freezetrain.analysis.effects import unchanged
from freezetrain.analysis.perturb import (
    damage_table,
    dimension_targets,
    perturbations,
    random_targets,
    run,
    weight_targets,
)
from freezetrain.analysis.recipe import PerturbRecipe, SingleWeight
from freezetrain.errors import UserError
from freezetrain.evaluation import encode_documents
from freezetrain.recipe.sources import EvaluationTexts, ModelSource
from freezetrain.regions.base import base_of
from freezetrain.scoring import Scores
from freezetrain.scoring.weights import Weight

LENGTH = 32
EVALUATION = EvaluationTexts(languages=["en", "zh"], max_length=LENGTH)
NORM = "model.layers.1.input_layernorm.weight"
MATRIX = "model.layers.0.mlp.up_proj.weight"
WEIGHTS = [Weight(NORM, (3,)), Weight(NORM, (8,)), Weight(MATRIX, (2, 5))]


@pytest.fixture(scope="module")
def documents(udhr, tokenizer):
    return {name: encode_documents(udhr[name].test[:2], tokenizer) for name in ("en", "zh")}


@pytest.fixture
def model(make_model):
    """With matrices large enough for the loss to depend on single weights."""
    model = make_model()
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(20 if parameter.ndim == 2 else 0.6)
    return model


def recipe_of(**settings):
    weights = [SingleWeight(weight.name, list(weight.index)) for weight in WEIGHTS]
    return PerturbRecipe(
        ModelSource("m"), **{"weights": weights, "evaluation": EVALUATION, **settings}
    )


def changed_by_hand(model, weight, change):
    """With that weight changed in the state dict."""

    def edit(name, value):
        if name == weight.name:
            value[weight.index] = change(value[weight.index])
        return value

    return edited(model, edit)


@pytest.mark.parametrize(
    ("change", "by_hand"),
    [("zero", lambda value: 0.0), ("scale", lambda value: value * 9.0), ("reinitialize", None)],
)
def test_against_an_edited_state_dict(model, documents, change, by_hand):
    targets = weight_targets(model, [(weight, None) for weight in WEIGHTS])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    results = perturbations(
        model, documents, EVALUATION, targets, recipe_of(change=change, by=9.0, random=False)
    )
    before = plain_figures(model, documents, LENGTH)
    assert len(results.weights) == 3
    for damage in results.weights:
        weight = Weight(damage.name, tuple(damage.index))
        assert damage.what == str(weight)
        assert damage.value == state[weight.name][weight.index].item()
        if by_hand is None and weight.name != NORM:
            continue  # drawn at random; what it is drawn from has a test of its own
        after = plain_figures(
            changed_by_hand(model, weight, by_hand or (lambda _: 1.0)), documents, LENGTH
        )
        rises = {}
        for language, (nll, tokens, size) in after.items():
            rises[language] = (nll - before[language][0]) / size
            assert damage.rise[language] == pytest.approx(rises[language], abs=1e-6)
            assert math.isclose(damage.perplexity[language], math.exp(nll / tokens), rel_tol=1e-4)
        assert damage.mean_rise == pytest.approx(sum(rises.values()) / 2, abs=1e-6)
        assert max(abs(rise) for rise in rises.values()) > 2e-5  # far more than rounding
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for language, (nll, tokens, _) in before.items():
        assert math.isclose(results.before[language], math.exp(nll / tokens), rel_tol=1e-4)


def test_ranked_by_damage(model, documents):
    targets = weight_targets(model, [(weight, None) for weight in WEIGHTS])
    results = perturbations(model, documents, EVALUATION, targets, recipe_of(change="scale", by=50))
    rises = [damage.mean_rise for damage in results.weights]
    assert rises == sorted(rises, reverse=True)
    assert len(set(rises)) == 3
    assert results.by == 50
    table = damage_table(results)
    assert table.title.startswith("Single weights multiplied by 50")
    assert len(table.cells()) == 6


def test_what_the_model_gives_may_be_known(model, documents):
    before = unchanged(model, documents, EVALUATION)
    targets = weight_targets(model, [(WEIGHTS[0], 0.5)])
    for known in (before, None):
        results = perturbations(model, documents, EVALUATION, targets, recipe_of(), known)
        assert results.before == {name: figures.perplexity for name, figures in before.items()}
        assert results.weights[0].score == 0.5


def test_random_ones_are_others_of_the_same_parameters(model):
    some = [Weight(NORM, (place,)) for place in range(0, 16, 3)] + [Weight(MATRIX, (2, 5))]
    targets = weight_targets(model, [(weight, None) for weight in some])
    targets += dimension_targets(model, [1, 2], [NORM])
    seen = {}
    for seed in range(30):
        drawn = random_targets(model, targets, seed)
        assert [one.what for one in drawn] == [
            one.what for one in random_targets(model, targets, seed)
        ]
        assert not {one.what for one in drawn} & {one.what for one in targets}
        names = [one.weight.name for one in drawn if one.weight]
        assert names.count(NORM) == 6
        assert names.count(MATRIX) == 1
        dimensions = [one.dimension for one in drawn if one.dimension is not None]
        assert len(set(dimensions)) == 2
        for one in drawn:
            seen.setdefault(one.weight.name if one.weight else "dimension", set()).add(one.what)
    assert len(seen[NORM]) == 10  # all that are left
    assert len(seen["dimension"]) == 14


def test_fewer_random_ones_where_there_are_no_more(model):
    targets = weight_targets(model, [(Weight(NORM, (place,)), None) for place in range(12)])
    assert {one.weight.index[0] for one in random_targets(model, targets, 0)} == {12, 13, 14, 15}


def test_a_weight_told_twice_is_changed_once_with_its_score(model):
    told = [(WEIGHTS[0], None), (WEIGHTS[1], 0.1), (WEIGHTS[0], 0.7), (WEIGHTS[1], None)]
    assert [(one.weight, one.score) for one in weight_targets(model, told)] == [
        (WEIGHTS[0], 0.7),
        (WEIGHTS[1], 0.1),
    ]


def test_dimensions_together_or_by_parameter(model):
    (together,) = dimension_targets(model, [4], [])
    assert together.region.count == 2 * (16 * 4 + 24 * 3 + 2)  # two layers
    alone = dimension_targets(model, [4, 5], ["*input_layernorm*", MATRIX])
    assert [(one.dimension, one.parameter, one.region.count) for one in alone] == [
        (dimension, name, count)
        for dimension in (4, 5)
        for name, count in sorted({NORM: 1, NORM.replace("1", "0"): 1, MATRIX: 24}.items())
    ]


def test_the_verb(model_folder, make_model, tmp_path):
    """By score, by name and by dimension, in one run."""
    scores = {NORM: torch.zeros(16), MATRIX: torch.zeros(24, 16)}
    scores[MATRIX][7, 7], scores[NORM][2] = 5.0, 4.0
    made = {"method": "taylor", "batches": 1, "norms": [NORM]}
    (tmp_path / "scores").mkdir()
    Scores(scores, base_of(make_model()), made).save(tmp_path / "scores" / "en.safetensors")
    recipe = PerturbRecipe(
        ModelSource(str(model_folder)),
        weights=[SingleWeight(NORM, [9])],
        scores=str(tmp_path / "scores"),
        count=2,
        dimensions=[3],
        evaluation=EvaluationTexts(languages=["en"], documents=1, max_length=LENGTH),
    )
    results = run(recipe, tmp_path).results
    rows = {row["what"]: row for row in results["weights"]}
    assert set(rows) == {
        f"{MATRIX}[7, 7]", f"{NORM}[2]", f"{NORM}[9]", "dimension 3 of all decoder blocks",
    }  # fmt: skip
    assert (rows[f"{MATRIX}[7, 7]"]["score"], rows[f"{NORM}[2]"]["score"]) == (5.0, 4.0)
    assert rows[f"{NORM}[9]"]["score"] is None
    assert len(results["random"]) == 4
    assert results["change"] == "zero"
    assert results["by"] is None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"weights": []}, "weights must be one or more, unless scores or dimensions"),
        ({"count": 0}, "count must be 1 or more"),
        ({"languages": ["en"]}, "languages must be left out where no scores"),
        ({"parameters": ["*"]}, "parameters must be left out where no dimensions"),
        ({"dimensions": [1, 1]}, "dimensions must be each a different one"),
        ({"seed": -1}, "seed must be from 0"),
    ],
)
def test_recipes_that_cannot_work(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        recipe_of(**settings)


def test_an_index_below_0_is_refused():
    with pytest.raises(UserError, match="numbers of 0 or more"):
        SingleWeight(NORM, [-1])
