import pytest

from freezetrain.errors import UserError
from freezetrain.evaluation.brake import Brake
from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.sources import ModelSource
from freezetrain.training.recipe import Freezing, TrainRecipe, Watch


def recipe(action: str = "roll_back", **changes) -> TrainRecipe:
    return TrainRecipe(
        ModelSource("base"), **{"brake": Brake({"es": 0.05}, action=action), **changes}
    )


NO_WAY_BACK = [
    ({"optimization": Optimization(ema_decay=0.9)}, "optimization.ema_decay must be left out"),
    ({"average_with_base": 0.5}, "average_with_base must be left out"),
    ({"region": "r", "freeze": Freezing(clamp=0.0)}, "freeze.clamp must be left out"),
    ({"region": "r", "freeze": Freezing(first_step=3)}, "freeze.first_step must be left out"),
]


@pytest.mark.parametrize(("changes", "said"), NO_WAY_BACK)
@pytest.mark.parametrize("action", ["roll_back", "select"])
def test_what_has_no_way_back_is_refused(action, changes, said):
    with pytest.raises(UserError, match=f"{said} where the brake's action is {action}"):
        recipe(action, **changes)


@pytest.mark.parametrize(("changes", "said"), NO_WAY_BACK)
@pytest.mark.parametrize("action", ["warn", "stop"])
def test_it_is_no_matter_where_nothing_goes_back(action, changes, said):
    assert not recipe(action, **changes).brake.goes_back


def test_a_brake_needs_the_watch():
    with pytest.raises(UserError, match="brake must be left out where the watch is off"):
        recipe(watch=Watch(off=True))


def test_a_frozen_region_that_lasts_from_the_start_has_a_way_back():
    assert recipe("select", region="r", freeze=Freezing(last_step=5)).brake.goes_back


def test_a_limit_of_a_language_that_is_not_watched_is_refused_before_texts_are_read():
    watch = Watch(languages=["en", "es", "zh"])
    for limits, said in (
        ({"esp": 0.05}, r"limits 'esp', which is not one of .* en, es \(did you mean 'es'"),
        ({"zh": 0.05}, "limits 'zh', which is trained on, is not one of the held-out"),
    ):
        with pytest.raises(UserError, match=said):
            recipe(brake=Brake(limits), watch=watch, languages=["zh"])
    limits = {"es": 0.05, "mean": 0.05, "worst": 0.05}
    assert recipe(brake=Brake(limits), watch=watch, languages=["zh"]).brake.limits == limits
    assert recipe(brake=Brake({"esp": 0.05})), "only the texts tell which languages there are"
