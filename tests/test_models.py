"""Models without weights, attention, and what does not fit."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from freezetrain import models
from freezetrain.errors import UserError
from freezetrain.models import check_fit, load_model, meta_model
from freezetrain.ranks import Launch
from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.sources import ModelSource
from freezetrain.training import dry_run, train
from freezetrain.training.recipe import TrainRecipe


@pytest.fixture
def big(tmp_path) -> ModelSource:
    """Llama 2 70B, of which there is a config.json only."""
    LlamaConfig(
        vocab_size=32000,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    ).save_pretrained(tmp_path / "big")
    return ModelSource(str(tmp_path / "big"))


def test_meta_model_has_shapes_and_no_memory(big):
    model = meta_model(big)
    assert sum(parameter.numel() for parameter in model.parameters()) == 68_976_648_192
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    assert model.dtype == torch.float32
    big.dtype = "stored"
    assert meta_model(big).dtype == torch.bfloat16


def test_check_fit_works_without_weights(big, tokenizer):
    model = meta_model(big)
    check_fit(model, tokenizer, 4096)
    with pytest.raises(UserError, match=r"sequence_length is 4097 .* for 4096; use 4096 or less"):
        check_fit(model, tokenizer, 4097)
    model.resize_token_embeddings(300)
    with pytest.raises(UserError, match="the tokenizer has 400 tokens and the model embeds 300"):
        check_fit(model, tokenizer, 16)


def attention(source: ModelSource, **options) -> str:
    return meta_model(source, **options).config._attn_implementation


def test_attention_is_as_asked(big):
    assert attention(big) == "sdpa", "as transformers chooses"
    big.attention = "eager"
    assert attention(big) == "eager"


def test_attention_reaches_a_loaded_model(model_folder):
    source = ModelSource(str(model_folder), attention="eager")
    assert load_model(source).config._attn_implementation == "eager"
    assert load_model(source, random_weights=True).config._attn_implementation == "eager"


@pytest.fixture
def flash_is_there(monkeypatch) -> list[str | None]:
    """Pretend that flash attention is installed; the list gets what transformers is to use."""
    implementations: list[str | None] = []

    def from_config(config, attn_implementation=None, **_):
        implementations.append(attn_implementation)
        return torch.nn.Identity()

    monkeypatch.setattr(models, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", from_config)
    monkeypatch.setattr(models, "check_runs", lambda *_: None)
    return implementations


def test_flash_attention_is_chosen_for_16_bits_where_it_is(big, flash_is_there, monkeypatch):
    meta_model(big, in_16_bits=True)
    meta_model(big, in_16_bits=False)
    meta_model(big)
    big.dtype = "bfloat16"
    meta_model(big)
    assert flash_is_there == ["flash_attention_2", None, None, "flash_attention_2"]
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "_supports_flash_attn", False)
    meta_model(big)
    assert flash_is_there[-1] is None, "not for a model that lacks it"


def test_flash_attention_is_asked_for_as_training_computes(big, flash_is_there, monkeypatch):
    monkeypatch.setattr(train, "load_tokenizer", lambda _: None)
    big.attention = "flash_attention_2"
    recipe = TrainRecipe(big, optimization=Optimization(precision="bf16-mixed"))
    with pytest.raises(AttributeError):  # the stand-in of the fixture is no language model
        train.run(recipe, Path("out"))
    with pytest.raises(ValueError, match="empty"):
        dry_run.run(recipe, Launch(), Path("out"))
    assert flash_is_there == ["flash_attention_2", "flash_attention_2"]


def test_flash_attention_that_cannot_be_had_is_refused(big, monkeypatch):
    big.attention = "flash_attention_2"
    monkeypatch.setattr(models, "is_flash_attn_2_available", lambda: False)
    with pytest.raises(UserError, match="it is not installed here; use sdpa"):
        meta_model(big, in_16_bits=True)
    monkeypatch.setattr(models, "is_flash_attn_2_available", lambda: True)
    with pytest.raises(UserError, match="computes in 16 bits, and this is in 32; use sdpa"):
        load_model(big, random_weights=True)


def test_broken_config_is_named(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(
        UserError, match=r"cannot read the model's configuration .*: it is not JSON"
    ):
        meta_model(ModelSource(str(tmp_path / "broken")))
