"""Training recipes that cannot work are refused when they are read, with what to do."""

import pytest

from freezetrain.errors import UserError
from freezetrain.evaluation.brake import Brake
from freezetrain.recipe.optimization import Engine, Optimization
from freezetrain.recipe.sources import ModelSource, TextSource
from freezetrain.training.recipe import (
    Freezing,
    Lora,
    Penalty,
    Pull,
    Rehearse,
    Replay,
    TrainRecipe,
    Watch,
)

MODEL = ModelSource("model")
STREAM = TextSource("t", streaming=True)
LIMITED = Optimization(max_steps=5)


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (lambda: TrainRecipe(MODEL, weights={"a": 0.5, "b": 0.4}), r"which sum to 0\.9"),
        (lambda: TrainRecipe(MODEL, weights={"a": 1.5, "b": -0.5}), r"weights\.a must be above 0"),
        *(
            (lambda name=name: TrainRecipe(MODEL, push=name), "push must be OWNER/NAME, of letters")
            for name in ("", "name", "a/b/c", "a/b c", "a/", "https://huggingface.co/a/b", "a/..")
        ),
        (lambda: Replay(weights={"a": 0.2}), r"which sum to 0\.2"),
        (lambda: Replay(weights={"a": 1.0}, temperature=2.0), "temperature must be left out"),
        (lambda: Replay(share=1.0), "share must be above 0 and below 1"),
        (lambda: Replay(until=0.0), "until must be above 0"),
        (
            lambda: TrainRecipe(
                MODEL,
                engine=Engine(kind="fsdp2"),
                optimization=Optimization(ema_decay=0.9),
            ),
            "ema_decay must be left out under fsdp2",
        ),
        (
            lambda: TrainRecipe(MODEL, languages=["a"], replay=Replay(languages=["a"])),
            "left out of replay.languages",
        ),
        (
            lambda: TrainRecipe(
                MODEL,
                replay=Replay(TextSource("t", test_one_in=8)),
                watch=Watch(TextSource("t", test_one_in=9)),
            ),
            "replay.texts and watch.texts read the same texts but split them",
        ),
        (lambda: Rehearse("f", share=1.0), r"rehearse\.share must be above 0 and below 1, got 1"),
        (lambda: Rehearse("f", until=0.0), r"rehearse\.until must be above 0"),
        (
            lambda: Rehearse("f", loss="next_token", teacher="model"),
            r"rehearse\.teacher must be stored where rehearse\.loss is next_token",
        ),
        (
            lambda: TrainRecipe(MODEL, replay=Replay(share=0.6), rehearse=Rehearse("f", share=0.4)),
            r"replay\.share \+ rehearse\.share must be below 1, got 1",
        ),
        (
            lambda: TrainRecipe(MODEL, rehearse=Rehearse("f"), from_scratch=True),
            "rehearse must be left out when from_scratch is set",
        ),
        (
            lambda: TrainRecipe(
                MODEL, rehearse=Rehearse("f", teacher="model"), engine=Engine(kind="zero-2")
            ),
            r"rehearse\.teacher must be stored under zero-2",
        ),
        (
            lambda: TrainRecipe(MODEL, STREAM, watch=Watch(off=True)),
            r"optimization\.max_steps must be given, or max_tokens, where texts are streamed",
        ),
        (
            lambda: TrainRecipe(MODEL, STREAM, temperature=2.0, optimization=LIMITED),
            "^temperature must be left out where texts are streamed: give weights",
        ),
        (
            lambda: TrainRecipe(MODEL, replay=Replay(STREAM, temperature=2.0)),
            r"replay\.temperature must be left out where texts are streamed: give replay\.weights",
        ),
        (
            lambda: TrainRecipe(MODEL, STREAM, optimization=LIMITED, watch=Watch(STREAM)),
            r"watch\.texts\.documents must be given where watch\.texts are streamed",
        ),
        (lambda: Watch(every_n_tokens=0), "every_n_tokens must be 1 or more, got 0"),
        (lambda: Watch(at_samples=[5, 2]), "at_samples must be ascending, the last above 0"),
        (lambda: Watch(at_samples=[0]), "at_samples must be ascending, the last above 0"),
        (
            lambda: Watch(every_n_steps=5, at_samples=[0, 5]),
            "watch must be given at most one of .* got .'every_n_steps', 'at_samples'.;",
        ),
        (lambda: Watch(time_share=1.5), "time_share must be above 0 and at most 1, got 1.5"),
        (lambda: Freezing(first_step=5).check_steps(5), r"first_step must be below the 5 steps"),
    ],
)
def test_refused(made, complaint):
    with pytest.raises(UserError, match=complaint):
        made()


EMA = Optimization(ema_decay=0.9)
NEAR = {"penalty": Penalty(1.0), "average_with_base": 0.5, "lora": Lora()}


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        *(
            ({name: value, "engine": Engine(kind=kind)}, f"{name} must be left out under {kind}")
            for name, value in NEAR.items()
            for kind in ("fsdp2", "zero-1", "zero-3")
        ),
        *(
            ({name: value, "from_scratch": True}, f"{name} must be .*there is no base")
            for name, value in NEAR.items()
        ),
        ({"average_with_base": 1.0}, r"average_with_base must be in \(0, 1\), got 1"),
        ({"average_with_base": 0.5, "optimization": EMA}, r"ema_decay must be .*one of them is"),
        (
            {"average_with_base": 0.5, "region": "r", "freeze": Freezing(clamp=0.0)},
            r"freeze\.clamp must be left out where average_with_base",
        ),
        (
            {"average_with_base": 0.5, "region": "r", "freeze": Freezing(first_step=1)},
            r"freeze\.first_step must be left out where average_with_base",
        ),
        ({"lora": Lora(), "region": "r"}, "region must be left out where lora is given"),
        ({"lora": Lora(), "penalty": Penalty(1.0)}, "penalty must be left out where lora"),
        ({"lora": Lora(), "pull": Pull(1.0)}, "pull must be left out where lora"),
        ({"pull": Pull(1.0), "penalty": Penalty(1.0)}, "penalty must be left out where pull is"),
        ({"pull": Pull(1.0), "from_scratch": True}, "pull must be .*there is no base"),
        ({"lora": Lora(), "average_with_base": 0.5}, "average_with_base must be left out where l"),
        ({"lora": Lora(), "optimization": EMA}, "ema_decay must be left out where lora"),
    ],
)
def test_what_stays_near_the_base_is_refused(more, complaint):
    with pytest.raises(UserError, match=complaint):
        TrainRecipe(MODEL, **more)


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (lambda: Penalty(-1.0), r"penalty\.strength must be a number, 0 or more"),
        (lambda: Penalty(float("inf")), r"penalty\.strength must be a number, 0 or more"),
        (lambda: Pull(-1.0), r"pull\.strength must be a number, 0 or more"),
        (lambda: Pull(1.0, {"a": float("nan")}), r"pull\.regions: a must be a number, 0 or more"),
        (lambda: Pull(1.0, {"a": 1.0}, "scores"), r"pull\.regions must be left out where fisher"),
        (lambda: Pull(1.0, languages=["en"]), r"pull\.languages must be left out where fisher"),
        (lambda: Pull(1.0, log_every=0), r"pull\.log_every must be 1 or more"),
        (lambda: Lora(rank=0), r"lora\.rank must be 1 or more"),
        (lambda: Lora(alpha=0.0), r"lora\.alpha must be a number above 0"),
        (lambda: Lora(dropout=1.0), r"lora\.dropout must be in \[0, 1\)"),
    ],
)
def test_pulls_and_adapters_that_cannot_work(made, complaint):
    with pytest.raises(UserError, match=complaint):
        made()


def braked(action: str = "roll_back", **changes) -> TrainRecipe:
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
        braked(action, **changes)


@pytest.mark.parametrize(("changes", "said"), NO_WAY_BACK)
@pytest.mark.parametrize("action", ["warn", "stop"])
def test_it_is_no_matter_where_nothing_goes_back(action, changes, said):
    assert not braked(action, **changes).brake.goes_back


def test_a_brake_needs_the_watch():
    with pytest.raises(UserError, match="brake must be left out where the watch is off"):
        braked(watch=Watch(off=True))


def test_a_frozen_region_that_lasts_from_the_start_has_a_way_back():
    assert braked("select", region="r", freeze=Freezing(last_step=5)).brake.goes_back


def test_a_limit_of_a_language_that_is_not_watched_is_refused_before_texts_are_read():
    watch = Watch(languages=["en", "es", "zh"])
    for limits, said in (
        ({"esp": 0.05}, r"limits 'esp', which is not one of .* en, es \(did you mean 'es'"),
        ({"zh": 0.05}, "limits 'zh', which is trained on, is not one of the held-out"),
    ):
        with pytest.raises(UserError, match=said):
            braked(brake=Brake(limits), watch=watch, languages=["zh"])
    limits = {"es": 0.05, "mean": 0.05, "worst": 0.05}
    assert braked(brake=Brake(limits), watch=watch, languages=["zh"]).brake.limits == limits
    assert braked(brake=Brake({"esp": 0.05})), "only the texts tell which languages there are"
