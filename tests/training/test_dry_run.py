"""`freezetrain train R --dry_run`: says what would run, allocates nothing, leaves nothing."""

import os
import re
import resource
from pathlib import Path

import pytest
from forked_ranks import run_ranks
from transformers import LlamaConfig

from freezetrain.cli import main
from freezetrain.errors import UserError
from freezetrain.ranks import Launch
from freezetrain.recipe.optimization import Engine, Optimization
from freezetrain.recipe.sources import ModelSource
from freezetrain.regions import Region
from freezetrain.training import dry_run
from freezetrain.training.recipe import Lora, TrainRecipe

LARGE = {
    "7B": LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, vocab_size=32000, max_position_embeddings=4096,
    ),
    "70B": LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, vocab_size=128256, max_position_embeddings=8192,
    ),
}  # fmt: skip
WEIGHTS = {"7B": 6_738_415_616, "70B": 70_553_706_496}  # of Llama 2 and 3, as published


def configuration(name, folder):
    LARGE[name].architectures = ["LlamaForCausalLM"]
    LARGE[name].save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "kind"), [("7B", "zero-2"), ("70B", "zero-3"), ("70B", "fsdp2")])
def test_large_models_from_their_configuration(name, kind, tmp_path):
    recipe = TrainRecipe(
        ModelSource(str(configuration(name, tmp_path))),
        optimization=Optimization(
            max_tokens=10**9, sequence_length=2048, micro_batch=1, batch_tokens=2**20,
            precision="bf16-mixed",
        ),
        engine=Engine(kind=kind, devices=64, gradient_checkpointing=True),
    )  # fmt: skip
    results = dry_run.run(recipe, Launch(), tmp_path / "out").results
    assert results["weights"] == WEIGHTS[name]
    assert results["devices"] == 64
    assert results["accumulate"] == 2**20 // 2048 // 64
    assert results["steps"] == -(-(10**9) // 2**20)
    assert 12 * WEIGHTS[name] <= results["checkpoint_bytes"] <= 14 * WEIGHTS[name]
    state = {"zero-2": 2 + 14 / 64, "zero-3": 16 / 64, "fsdp2": 12 / 64}[kind] * WEIGHTS[name]
    assert state < results["memory_bytes"] < state + 40e9
    assert os.listdir(tmp_path) == ["config.json"]


def dry_run_in_28_gib(rank: int, world: int, arguments: list[str]) -> None:
    del os.environ["LOCAL_WORLD_SIZE"]  # as started by hand, not by torchrun
    resource.setrlimit(resource.RLIMIT_AS, (28 << 30, 28 << 30))
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert not stopped.value.code


def test_nothing_of_the_model_is_allocated(tmp_path, monkeypatch):
    """70B weights are 282 GB; the process may address a tenth of that."""
    monkeypatch.setenv("COLUMNS", "120")
    configuration("70B", tmp_path)
    arguments = [
        "train", "--model", str(tmp_path), "--dry-run", "--engine.kind", "fsdp2",
        "--engine.devices", "64", "--optimization.batch_tokens", str(8 * 512 * 64),
        "--optimization.max_steps", "10",
    ]  # fmt: skip
    run_ranks(dry_run_in_28_gib, arguments, world=1, group=False, logs=tmp_path / "logs")
    said = (tmp_path / "logs" / "0.out").read_text()
    assert "70,553,706,496 weights" in said
    assert "8 sequences x 1 accumulated x 64 devices x 512 tokens = 262,144 tokens" in said
    assert sorted(os.listdir(tmp_path)) == ["config.json", "logs"]


def test_the_regions_share(model_folder, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    Region.random(model, 0.1, seed=0).save(tmp_path / "r.safetensors")
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--model", str(model_folder), "--region", str(tmp_path / "r.safetensors"),
              "--optimization.sequence_length", "16", "--dry_run", "--out", "out"])  # fmt: skip
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert re.search(r"the region's share of it.*\d KB", said)
    assert "one pass over the texts" in said
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--optimization.sequence_length", 256), "sequence_length is 256 tokens and the model"),
        (
            ("--engine.devices", 3, "--optimization.batch_tokens", 4096),
            "3 devices with micro_batch",
        ),
        (("--region", "nowhere.safetensors"), "nowhere.safetensors"),
        (("--watch.languages", "[en, worst]"), "a language is called 'worst', which is"),
    ],
)
def test_what_would_be_refused_is_refused(model_folder, capsys, more, complaint):
    arguments = (
        "train",
        "--model",
        model_folder,
        "--optimization.sequence_length",
        64,
        "--dry_run",
    )
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in (*arguments, *more)])
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not Path("runs").exists()


def test_rounding_of_what_is_frozen_is_refused(model_folder, model, tmp_path):
    Region.random(model, 0.1, seed=0).save(tmp_path / "r.safetensors")
    recipe = TrainRecipe(
        ModelSource(str(model_folder)),
        region=str(tmp_path / "r.safetensors"),
        optimization=Optimization(sequence_length=16, precision="bf16-true"),
    )
    with pytest.raises(UserError, match="would round the entries that are to be frozen"):
        dry_run.run(recipe, Launch(), tmp_path / "out")
    recipe.freeze.clamp = 0
    dry_run.run(recipe, Launch(), tmp_path / "out")


def test_adapters_alone_are_trained(model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        main(["train", "--model", str(model_folder), "--lora.rank", "4", "--dry_run",
              "--optimization.sequence_length", "16"])  # fmt: skip
    assert "1,984 of them, the adapters'" in capsys.readouterr().out
    recipe = TrainRecipe(
        ModelSource(str(model_folder)), lora=Lora(4), optimization=Optimization(sequence_length=16)
    )
    results = dry_run.run(recipe, Launch(), tmp_path / "out").results
    assert results["trained"] == 1984
    assert results["checkpoint_bytes"] == 4 * results["weights"] + 8 * 1984
    recipe.lora = Lora(targets=["q_porj"])
    with pytest.raises(UserError, match=r"lora\.targets has 'q_porj'"):
        dry_run.run(recipe, Launch(), tmp_path / "out")
