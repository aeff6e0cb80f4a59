"""Blocks by torch.compile train as they are; what is compiled is left alone in evaluation."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from freezetrain.errors import UserError
from freezetrain.freezing import compare_weights
from freezetrain.recipe.optimization import Engine, Optimization
from freezetrain.recipe.sources import ModelSource
from freezetrain.regions import Region
from freezetrain.training import train
from freezetrain.training.compiled import compile_blocks
from freezetrain.training.recipe import Pull, TrainRecipe, Watch


@pytest.fixture
def graphs(monkeypatch):
    """Token counts of the graphs that are run, as torch.compile has made them; they run as such."""
    ran = []

    def backend(graph, inputs):
        def run(*values):
            ran.append(next(v.shape[:2].numel() for v in values if v.is_floating_point()))
            return graph(*values)

        return run

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile(function, backend=backend))
    torch.compiler.reset()
    yield ran
    torch.compiler.reset()


def test_training_is_the_same_with_a_freeze_a_pull_and_documents_apart(
    model_folder, tmp_path, graphs
):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    Region.random(model, 0.2, seed=3).save(tmp_path / "region.safetensors")
    recipe = TrainRecipe(
        ModelSource(str(model_folder)),
        languages=["zh"],
        region=str(tmp_path / "region.safetensors"),
        pull=Pull(strength=5.0),
        optimization=Optimization(
            max_steps=3, sequence_length=32, micro_batch=2, batch_tokens=128, learning_rate=0.01,
            warmup_steps=1, document_mask=True,
        ),
        engine=Engine(gradient_checkpointing=2),  # of one of the two blocks
        watch=Watch(languages=["zh", "en"], documents=2, max_length=64),
        workers=1,
    )  # fmt: skip
    train.run(recipe, tmp_path / "plain", table=False, progress=False)
    assert not graphs
    compiled = replace(recipe, engine=replace(recipe.engine, compile=True))
    train.run(compiled, tmp_path / "compiled", table=False, progress=False)
    assert graphs
    assert set(graphs) == {2 * 32}, "no batch of an evaluation"
    mine, theirs = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("compiled", "plain")
    )
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=2e-5, msg=name)
    base = load_file(model_folder / "model.safetensors")
    assert compare_weights(base, mine, Region.load(tmp_path / "region.safetensors")).moved == 0


def test_a_last_batch_of_another_size_is_compiled_too(make_model, graphs):
    plain, model = make_model(), make_model()
    model.load_state_dict(plain.state_dict())
    compile_blocks(model.train())
    for rows in (3, 1):
        ids = torch.randint(400, (rows, 8), generator=torch.Generator().manual_seed(rows))
        losses = [each(ids, labels=ids).loss for each in (model, plain.train())]
        torch.testing.assert_close(*losses)
    assert set(graphs) == {3 * 8, 8}


def test_zero_3_is_refused():
    with pytest.raises(UserError, match="compile must be false under zero-3"):
        Engine(kind="zero-3", compile=True)
