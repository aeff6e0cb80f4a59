"""Every n-th decoder block is computed again: just those run twice, gradients keep their bits."""

from dataclasses import replace

import pytest
import torch
from decoders import tiny_gpt2, tiny_mixtral
from transformers import JetMoeConfig, JetMoeForCausalLM

from freezetrain.cli import main
from freezetrain.errors import UserError
from freezetrain.ranks import Launch
from freezetrain.recipe.optimization import Engine, Optimization
from freezetrain.recipe.sources import ModelSource
from freezetrain.training.checkpointed import checkpoint_blocks, require_checkpointing
from freezetrain.training.plan import make_plan
from freezetrain.training.recipe import TrainRecipe, Watch

BLOCKS = 5
TWICE = {True: [0, 1, 2, 3, 4], 2: [1, 3], 3: [2], 4: [1], 5: [0]}


def gradients_and_runs(model, inside):
    """Of one batch; ``inside``: a module of each block, whose forward passes are counted."""
    runs = [0] * len(inside)

    def counted(place):
        def count(*_):
            runs[place] += 1

        return count

    for place, module in enumerate(inside):  # before it: a second pass ends with what is needed
        module.register_forward_pre_hook(counted(place))
    ids = torch.randint(40, (2, 12), generator=torch.Generator().manual_seed(0))
    model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}, runs


@pytest.fixture(scope="module")
def deep(make_model):
    """Five blocks in fp64, and its gradients without checkpointing."""
    made = lambda: make_model(num_hidden_layers=BLOCKS).double()  # noqa: E731
    model = made()
    expected, runs = gradients_and_runs(model, [block.mlp for block in model.model.layers])
    assert runs == [1] * BLOCKS
    return made, expected


@pytest.mark.parametrize("every", TWICE)
def test_just_the_chosen_blocks_run_twice(deep, every):
    made, expected = deep
    model = made()
    checkpoint_blocks(model, every)
    gradients, runs = gradients_and_runs(model, [block.mlp for block in model.model.layers])
    assert [place for place, count in enumerate(runs) if count == 2] == TWICE[every]
    assert sum(runs) == BLOCKS + len(TWICE[every])
    assert all(gradients[name].equal(gradient) for name, gradient in expected.items())


@pytest.mark.parametrize("tiny", [tiny_gpt2, tiny_mixtral])
def test_blocks_of_other_architectures(tiny):
    def inside(model):
        blocks = model.transformer.h if tiny is tiny_gpt2 else model.model.layers
        return [block.mlp for block in blocks]

    plain, model = tiny(), tiny()
    torch.manual_seed(1)  # of GPT-2's dropout
    expected, _ = gradients_and_runs(plain, inside(plain))
    checkpoint_blocks(model, 2)
    torch.manual_seed(1)
    gradients, runs = gradients_and_runs(model, inside(model))
    assert runs == [2, 1]
    assert all(gradients[name].equal(gradient) for name, gradient in expected.items())


def planned(model_folder, every):
    recipe = TrainRecipe(
        ModelSource(str(model_folder)),
        languages=["zh"],
        optimization=Optimization(sequence_length=64),
        engine=Engine(gradient_checkpointing=every),
        watch=Watch(off=True),
    )
    return make_plan(recipe, Launch())


@pytest.mark.parametrize(
    ("every", "complaint"),
    [
        (0, "gradient_checkpointing must be true, false, or 1 or more: every how many blocks, got"),
        (-2, "got -2; change it in the recipe"),
        (3, "gradient_checkpointing must be at most 2, as many as the model has decoder blocks, g"),
    ],
)
def test_numbers_that_are_no_number_of_blocks(model_folder, every, complaint):
    with pytest.raises(UserError, match=complaint):
        planned(model_folder, every)


def test_one_is_all(model_folder):
    assert Engine(gradient_checkpointing=1) == Engine(gradient_checkpointing=True)
    assert planned(model_folder, 1).recipe.engine.gradient_checkpointing is True


def test_a_model_that_cannot_is_refused(make_model, monkeypatch):
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "kv_channels": 8}
    with torch.device("meta"):
        model = JetMoeForCausalLM(JetMoeConfig(**sizes, intermediate_size=16, num_local_experts=2))
    assert not model.supports_gradient_checkpointing
    with pytest.raises(UserError, match="true, and transformers cannot compute activations of Jet"):
        require_checkpointing(model, True)
    require_checkpointing(model, False)
    llama = make_model()
    monkeypatch.setattr("freezetrain.training.checkpointed.GradientCheckpointingLayer", type(model))
    require_checkpointing(llama, True)
    with pytest.raises(UserError, match="no switch for single blocks of LlamaForCausalLM, got 2"):
        require_checkpointing(llama, 2)


def test_a_dry_run_says_how_many(model_folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["train", "--model", str(model_folder), "--optimization.sequence_length", "16"]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--engine.gradient_checkpointing", "2", "--dry_run"])
    assert stopped.value.code == 0
    assert "computed again of 1 of 2 decoder blocks" in capsys.readouterr().out


def test_it_may_be_another_when_a_run_goes_on(model_folder):
    recipe = planned(model_folder, 2).recipe
    assert replace(recipe.engine, gradient_checkpointing=False).gradient_checkpointing is False
    assert "engine.gradient_checkpointing" in recipe.changeable
