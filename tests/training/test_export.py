"""Exported folders against what transformers itself writes; see test_sharded.py too."""

import json
import os
import shutil
from collections import namedtuple
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MixtralConfig,
    MixtralForCausalLM,
)

from freezetrain import ranks
from freezetrain.errors import CheckError, UserError
from freezetrain.training import export as module
from freezetrain.training.export import export


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=16, n_layer=2, n_head=2))


def mixtral() -> MixtralForCausalLM:
    """transformers holds its experts as one tensor and stores them one by one."""
    config = MixtralConfig(
        vocab_size=400,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=3,
    )
    return MixtralForCausalLM(config)


MODELS = {
    "untied": lambda make: make(),
    "tied": lambda make: make(tie_word_embeddings=True),
    "gpt2": lambda make: gpt2(),
    "experts": lambda make: mixtral(),
}


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: value
        for file in folder.glob("*.safetensors")
        for name, value in load_file(file).items()
    }


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 20_000])
@pytest.mark.parametrize("name", MODELS)
def test_equals_what_transformers_writes(tmp_path, make_model, tokenizer, name, shard_bytes):
    model = MODELS[name](make_model)
    export(model, tokenizer, tmp_path / "model", shard_bytes)
    model.save_pretrained(tmp_path / "expected")
    expected, actual = stored(tmp_path / "expected"), stored(tmp_path / "model")
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], value) for key, value in expected.items())
    for file in ("config.json", "generation_config.json"):
        assert (tmp_path / "model" / file).read_text() == (tmp_path / "expected" / file).read_text()
    shards = list((tmp_path / "model").glob("*.safetensors"))
    assert (len(shards) == 1) == (shard_bytes > 10**6)
    loaded, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    text = "人人生而自由"
    assert AutoTokenizer.from_pretrained(tmp_path / "model")(text) == tokenizer(text)
    assert sorted(os.listdir(tmp_path)) == ["expected", "model"]


def test_shards_are_no_larger_than_asked_and_indexed(tmp_path, model, tokenizer):
    export(model, tokenizer, tmp_path / "model", 30_000)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    sizes = []
    for file in sorted((tmp_path / "model").glob("*.safetensors")):
        held = load_file(file)
        assert {name for name, there in index["weight_map"].items() if there == file.name} == set(
            held
        )
        sizes.append(sum(tensor.nbytes for tensor in held.values()))
    assert all(size <= 30_000 for size in sizes)
    assert all(a + b > 25_600 for a, b in pairwise(sizes)), "filled up"
    assert index["metadata"]["total_size"] == sum(sizes)


def test_rounds_to_the_asked_type(tmp_path, model, tokenizer):
    export(model, tokenizer, tmp_path / "model", dtype=torch.bfloat16)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")  # in the type it was saved in
    assert loaded.dtype == torch.bfloat16
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32, "the model itself is left as it was"
        assert torch.equal(loaded.state_dict()[name], value.to(torch.bfloat16))


def test_each_tensor_keeps_the_type_that_the_base_has_it_in(tmp_path, model, tokenizer):
    narrow = {name: torch.bfloat16 for name in model.state_dict() if "norm" not in name}
    types = {**narrow, "model.norm.weight": torch.float32}
    export(model, tokenizer, tmp_path / "model", dtype=types)
    for name, value in stored(tmp_path / "model").items():
        assert value.dtype == (torch.float32 if "norm" in name else torch.bfloat16), name
        assert torch.equal(value, model.state_dict()[name].to(value.dtype))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.dtype == torch.float32, "in which nothing is lost"


def test_what_is_stored_as_several_is_in_one_type(tmp_path, tokenizer):
    model = mixtral()
    part = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    types = dict.fromkeys(stored_names(model, tmp_path / "any"), torch.bfloat16)
    export(model, tokenizer, tmp_path / "model", dtype={**types, part: torch.float32})
    held = stored(tmp_path / "model")
    assert held[part].dtype == held[part.replace(".1.", ".0.")].dtype == torch.float32
    assert held["lm_head.weight"].dtype == torch.bfloat16


def stored_names(model: torch.nn.Module, folder: Path) -> list[str]:
    model.save_pretrained(folder)
    return list(stored(folder))


def swaps(tensors: dict[str, torch.Tensor]) -> None:
    """Two of one shape under each other's name."""
    one, other = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    tensors[one], tensors[other] = tensors[other], tensors[one]


def flips(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight"].view(torch.int32)[-1, -1] ^= 1


def loses(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.0.mlp.up_proj.weight"]


def adds(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight_scale"] = torch.ones(24, 1)


def cuts(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name][:8].clone()


def rounds(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].bfloat16()


@pytest.mark.parametrize("change", [swaps, flips, loses, adds, cuts, rounds])
def test_a_folder_that_loads_as_another_model_is_no_export(
    tmp_path, model, tokenizer, monkeypatch, change
):
    def write(tensors, path, metadata):
        changed = {name: tensor.clone() for name, tensor in tensors.items()}
        change(changed)
        save_file(changed, path, metadata)

    monkeypatch.setattr(module, "save_file", write)
    with pytest.raises(CheckError, match=r"does not load as it was in memory: .*0\.mlp\.up_proj"):
        export(model, tokenizer, tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_a_configuration_of_another_type_is_no_export(tmp_path, model, tokenizer, monkeypatch):
    write = LlamaConfig.save_pretrained

    def save(config, folder, **options):
        config.dtype = torch.bfloat16
        write(config, folder, **options)

    monkeypatch.setattr(LlamaConfig, "save_pretrained", save)
    with pytest.raises(CheckError, match="its values are others"):
        export(model, tokenizer, tmp_path / "model", dtype=torch.float32)


def test_loading_it_again_draws_no_random_number(tmp_path, model, tokenizer):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    export(model, tokenizer, tmp_path / "model")
    assert torch.equal(torch.rand(3), expected)


def test_overwrites_nothing(tmp_path, model, tokenizer):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="exists already"):
        export(model, tokenizer, tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]
    assert os.listdir(tmp_path / "model") == ["mine.txt"]


def test_what_a_killed_export_left_does_not_stay(tmp_path, model, tokenizer):
    left = tmp_path / ".model.x7.unfinished" / "model"
    left.mkdir(parents=True)
    (left / "model-00001-of-00009.safetensors").write_text("half")
    export(model, tokenizer, tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]
    assert [p.name for p in (tmp_path / "model").glob("*.safetensors")] == ["model.safetensors"]


def test_disk_is_asked_before_anything_is_written(tmp_path, model, tokenizer, monkeypatch):
    size = sum(parameter.nbytes for parameter in model.parameters())
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(size - 1))
    with pytest.raises(UserError, match="the trained model may take"):
        export(model, tokenizer, tmp_path / "model")
    assert not os.listdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(size))
    export(model, tokenizer, tmp_path / "model")


def test_failed_write_leaves_no_model(tmp_path, model, tokenizer, monkeypatch):
    def fails(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "save_file", fails)
    with pytest.raises(UserError, match=r"could not write the trained model: No space left"):
        export(model, tokenizer, tmp_path / "model")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "call", ["training.export.PreTrainedTokenizerBase.save_pretrained", "files.os.replace"]
)
def test_what_else_rank_0_cannot_write_is_refused_on_all_ranks(
    tmp_path, model, tokenizer, monkeypatch, call
):
    def fails(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    sent = []
    monkeypatch.setattr(ranks, "from_all_ranks", lambda error, group: sent.append(error) or [error])
    monkeypatch.setattr(f"freezetrain.{call}", fails)
    with pytest.raises(UserError, match="could not write the trained model: No space left"):
        export(model, tokenizer, tmp_path / "model")
    assert "No space left" in str(sent[-1])
    assert not (tmp_path / "model").exists()
