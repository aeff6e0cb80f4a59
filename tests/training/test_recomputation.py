"""Gradient checkpointing where the recipe leaves it open: by what a rank may take."""

from dataclasses import asdict, replace

import pytest
from safetensors.torch import load_file

from freezetrain.ranks import Launch
from freezetrain.recipe.optimization import Engine, Optimization
from freezetrain.recipe.sources import ModelSource
from freezetrain.run_folder import changed_fields
from freezetrain.training import recomputation, train
from freezetrain.training.memory import estimate
from freezetrain.training.plan import make_plan
from freezetrain.training.recipe import TrainRecipe, Watch


@pytest.fixture
def recipe(model_folder):
    return TrainRecipe(
        model=ModelSource(str(model_folder)),
        languages=["zh"],
        optimization=Optimization(sequence_length=64, batch_tokens=1024, precision="32-true"),
        watch=Watch(off=True),
    )


def with_memory(of, monkeypatch):
    monkeypatch.setattr(recomputation, "memory_there", lambda: of)


def test_it_is_on_where_a_third_of_the_memory_is_not_enough(recipe, monkeypatch):
    without = replace(recipe, engine=Engine(gradient_checkpointing=False))
    plan = make_plan(without, Launch())
    assert plan.recomputation is None
    peak = estimate(plan.model, without, 1, on_gpu=False).peak
    with_memory(3 * peak + 3, monkeypatch)
    plan = make_plan(recipe, Launch())
    assert plan.recipe.engine.gradient_checkpointing is False
    assert plan.recomputation.said().startswith("off: ")
    with_memory(3 * peak - 3, monkeypatch)
    plan = make_plan(recipe, Launch())
    assert plan.recipe.engine.gradient_checkpointing is True
    assert plan.recomputation.peak == peak
    assert plan.recomputation.said().startswith("on: ")


def test_ranks_of_a_machine_without_gpus_share_its_memory(recipe, monkeypatch):
    recipe = replace(recipe, engine=Engine(kind="ddp", devices=2))
    without = replace(recipe, engine=Engine(kind="ddp", devices=2, gradient_checkpointing=False))
    peak = estimate(make_plan(without, Launch()).model, without, 2, on_gpu=False).peak
    for memory, on in ((6 * peak + 6, False), (6 * peak - 6, True)):
        with_memory(memory, monkeypatch)
        assert make_plan(recipe, Launch()).recipe.engine.gradient_checkpointing is on


def test_what_the_recipe_says_holds(recipe, monkeypatch):
    with_memory(1, monkeypatch)
    recipe = replace(recipe, engine=Engine(gradient_checkpointing=False))
    assert make_plan(recipe, Launch()).recipe == recipe


def test_a_run_for_gpus_that_are_elsewhere_is_left_open(recipe, monkeypatch):
    with_memory(1, monkeypatch)
    recipe = replace(recipe, optimization=Optimization(sequence_length=64, precision="bf16-mixed"))
    assert make_plan(recipe, Launch()).recipe.engine.gradient_checkpointing is None


def test_the_bits_are_the_same_so_that_a_run_may_go_on_with_another(recipe, tmp_path, monkeypatch):
    settings = Optimization(max_steps=2, sequence_length=64, learning_rate=1e-2, warmup_steps=1)
    recipe = replace(recipe, optimization=settings)
    kept = replace(recipe, engine=Engine(gradient_checkpointing=False))
    assert changed_fields(asdict(kept), recipe) == []
    with_memory(1, monkeypatch)
    in_part = replace(recipe, engine=Engine(gradient_checkpointing=2))
    weights = []
    for name, each in {"kept": kept, "again": recipe, "in part": in_part}.items():
        train.run(each, tmp_path / name, table=False, progress=False)
        weights.append(load_file(tmp_path / name / "model" / "model.safetensors"))
    for name, tensor in weights[0].items():
        assert all(other[name].equal(tensor) for other in weights[1:]), name
