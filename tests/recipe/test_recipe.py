"""Recipes that cannot work are refused when they are read, with what to do."""

import pytest

from freezetrain.cli.command_line import parse
from freezetrain.errors import UserError
from freezetrain.recipe.optimization import Engine, Optimization
from freezetrain.recipe.sources import ModelSource, TextSource
from freezetrain.training.recipe import Freezing, Lora, Penalty, Replay, TrainRecipe, Watch
from freezetrain.vocabulary.recipe import ExtendRecipe

MODEL = ModelSource("model")


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (lambda: TrainRecipe(MODEL, weights={"a": 0.5, "b": 0.4}), r"which sum to 0\.9"),
        (lambda: TrainRecipe(MODEL, weights={"a": 1.5, "b": -0.5}), r"weights\.a must be above 0"),
        (lambda: Replay(weights={"a": 0.2}), r"which sum to 0\.2"),
        (lambda: Replay(weights={"a": 1.0}, temperature=2.0), "temperature must be left out"),
        (lambda: Replay(share=1.0), "share must be above 0 and below 1"),
        (lambda: Replay(until=0.0), "until must be above 0"),
        (lambda: TextSource(folder="a", hub="b"), "folder must be left out where hub"),
        (lambda: TextSource(hub="b", streaming=True), "documents must be given"),
        (lambda: TextSource(streaming=True), "hub must be given"),
        (lambda: Optimization(max_steps=1, max_tokens=1), "max_tokens must be left out"),
        (lambda: Optimization(batch_tokens=100), r"a multiple of .* 4096, got 100"),
        (lambda: Optimization(spike_factor=1.0), "spike_factor must be above 1"),
        (lambda: Engine(offload="optimizer"), "offload must be none unless under zero"),
        (lambda: Engine(kind="zero-2", offload="all"), "offload must be none or optimizer"),
        (lambda: Engine(deepspeed={"a": 1}), "deepspeed must be left out"),
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
        (lambda: Watch(every_n_tokens=0), "every_n_tokens must be 1 or more, got 0"),
        (lambda: Watch(at_samples=[5, 2]), "at_samples must be ascending, the last above 0"),
        (lambda: Watch(at_samples=[0]), "at_samples must be ascending, the last above 0"),
        (
            lambda: Watch(every_n_steps=5, at_samples=[0, 5]),
            "watch must be given at most one of .* got .'every_n_steps', 'at_samples'.;",
        ),
        (lambda: Watch(time_share=1.5), "time_share must be above 0 and at most 1, got 1.5"),
        (lambda: ExtendRecipe(MODEL), "tokens must be given"),
        (lambda: ExtendRecipe(MODEL, learn=5), "language must be given"),
        (lambda: Freezing(first_step=5).check_steps(5), r"first_step must be below the 5 steps"),
        (lambda: Optimization(micro_batch=3, batch_tokens=3 * 512).accumulate(2), "2 devices"),
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
        (lambda: Lora(rank=0), r"lora\.rank must be 1 or more"),
        (lambda: Lora(alpha=0.0), r"lora\.alpha must be a number above 0"),
        (lambda: Lora(dropout=1.0), r"lora\.dropout must be in \[0, 1\)"),
    ],
)
def test_penalties_and_adapters_that_cannot_work(made, complaint):
    with pytest.raises(UserError, match=complaint):
        made()


def test_what_stays_near_the_base_from_the_command_line(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "model: {path: m}\npenalty: {strength: 1e-2, fisher: scores/fisher}\nregion: r\n"
        "average_with_base: 0.5\n"
    )
    told = parse(["train", str(tmp_path / "r.yaml"), "--penalty.strength", "3"]).recipe
    assert told.penalty == Penalty(3.0, "scores/fisher")
    assert told.average_with_base == 0.5
    told = parse(["train", "--model", "m", "--lora.rank", "8", "--lora.targets", "[q_proj]"]).recipe
    assert told.lora == Lora(8, targets=["q_proj"])
    assert told.lora.scale == 2.0
    assert (told.penalty, told.average_with_base) == (None, None)


def test_held_out_documents_may_be_another_split_of_the_data_set():
    trained = TextSource(hub="set", test_one_in=0)
    TrainRecipe(MODEL, texts=trained, watch=Watch(TextSource(hub="set", hub_split="validation")))
    with pytest.raises(UserError, match=r"texts and watch\.texts read the same texts"):
        TrainRecipe(MODEL, texts=trained, watch=Watch(TextSource(hub="set")))


def test_steps_by_steps_by_tokens_or_one_pass():
    of = {"sequence_length": 10, "micro_batch": 2, "batch_tokens": 40}
    assert Optimization(max_steps=7, **of).steps(1000) == 7
    assert Optimization(max_tokens=401, **of).steps(1000) == 11
    assert Optimization(**of).steps(1001) == 251
    assert Optimization(**of).steps(1) == 1


@pytest.mark.parametrize(("world", "accumulate"), [(1, 8), (2, 4), (8, 1)])
def test_a_step_is_the_same_on_any_number_of_devices(world, accumulate):
    settings = Optimization(sequence_length=10, micro_batch=2, batch_tokens=160)
    assert settings.accumulate(world) == accumulate
