"""Recipes from plain values, and with some fields changed."""

import pytest

from freezetrain.errors import UserError
from freezetrain.recipe.changes import built, changed
from freezetrain.recipe.sources import EvaluationTexts, ModelSource, TextSource
from freezetrain.training.recipe import Replay, TrainRecipe


@pytest.fixture
def recipe():
    return TrainRecipe(ModelSource("base"), texts=TextSource("texts"), languages=["zh"])


def test_only_the_named_fields_change_also_inside_groups(recipe):
    new = changed(recipe, {"optimization": {"ema_decay": 0.9}, "export_dtype": "float32"}, "here")
    assert new.optimization.ema_decay == 0.9
    assert new.export_dtype == "float32"
    new.optimization.ema_decay, new.export_dtype = None, "stored"
    assert new == recipe
    assert recipe.optimization.ema_decay is None


def test_a_group_that_is_not_there_is_made(recipe):
    new = changed(recipe, {"replay": {"texts": {"folder": "old"}, "share": 0.2}}, "here")
    assert new.replay == Replay(TextSource("old"), share=0.2)


def test_what_is_given_back_belongs_to_the_caller(recipe):
    changed(recipe, {}, "here").languages.append("en")
    assert changed(recipe, {}, "here").languages == ["zh"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimisation": {}}, r"here: unknown field 'optimisation' \(did you mean 'optimization'"),
        (
            {"optimization": {"ema_dcay": 1}},
            r"here: unknown field 'optimization.ema_dcay' \(did you mean 'optimization.ema_decay'",
        ),
        ({"replay": {"shre": 1}}, "here: unknown field 'replay.shre' .did you mean 'replay.share'"),
        ({"optimization": {"ema_decay": "x"}}, "here: optimization.ema_decay: expected float"),
        ({"replay": {"share": 3}}, "here: share must be above 0 and below 1, got 3.0"),
        ({"export_dtype": "float8"}, "here: export_dtype: expected one of 'float32'"),
    ],
)
def test_bad_changes_are_one_sentence(recipe, changes, said):
    with pytest.raises(UserError, match=said):
        changed(recipe, changes, "here")


def test_values_alone_make_a_recipe():
    assert built(EvaluationTexts, {"documents": 3}, "here") == EvaluationTexts(documents=3)
