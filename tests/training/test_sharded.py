"""Models loaded in parts by two ranks, against the whole ones, and exported again."""

import json
from pathlib import Path

import pytest
import torch
from forked_ranks import run_ranks
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SIZES = {  # an odd number of tokens: the ranks hold unlike numbers of rows
    "vocab_size": 401,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2 = {"vocab_size": 401, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
MAKE = {
    "llama": lambda make: make(vocab_size=401),
    "tied": lambda make: make(vocab_size=401, tie_word_embeddings=True),
    "gpt2": lambda make: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "qwen3": lambda make: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)),
    "gemma": lambda make: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8)),
    "experts": lambda make: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=3)),
}
IN_ONE_FILE = ("llama", "tied", "gpt2")
IN_PARTS = [*(f"{name}-in-files" for name in MAKE if name != "experts"), "tied", "two-heads"]
REFUSED = ["experts-in-files", "lacking"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_model, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    for name, make in MAKE.items():
        torch.manual_seed(0)
        model = make(make_model).eval()
        if name in IN_ONE_FILE:
            model.save_pretrained(folder / f"model-{name}")
        model.save_pretrained(folder / f"model-{name}-in-files", max_shard_size="20KB")
    tokenizer.save_pretrained(folder / "model-llama")
    # the files of a model without a head, as GPT-2's are on the hub
    MAKE["gpt2"](make_model).transformer.save_pretrained(folder / "model-headless")
    config = json.loads((folder / "model-gpt2" / "config.json").read_text())
    (folder / "model-headless" / "config.json").write_text(json.dumps(config))
    # config.json says that head and embedding are one, in a pickle of two
    two = make_model(vocab_size=401)
    two.config.save_pretrained(folder / "model-two-heads")
    settings = json.loads((folder / "model-two-heads" / "config.json").read_text())
    settings |= {"tie_word_embeddings": True, "architectures": ["LlamaForCausalLM"]}
    (folder / "model-two-heads" / "config.json").write_text(json.dumps(settings))
    torch.save(two.state_dict(), folder / "model-two-heads" / "pytorch_model.bin")
    # broken ones
    make_model().save_pretrained(folder / "model-lacking")
    file = folder / "model-lacking" / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, {"format": "pt"})
    # from scratch: no weights there
    for name in ("gpt2", "tied"):
        MAKE[name](make_model).config.save_pretrained(folder / f"random-{name}")
    run_ranks("sharded_ranks:fsdp", folder, [*IN_PARTS, *REFUSED, "headless"])
    run_ranks("sharded_ranks:zero", folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    return model.state_dict()


def assert_equal(folder: Path, source: Path) -> None:
    expected = weights(source)
    actual = weights(folder)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize("name", IN_PARTS)
def test_fsdp2_holds_what_the_files_do(folder: Path, name: str) -> None:
    source = folder / f"model-{name}"
    for again in ("", "-again"):
        assert_equal(folder / f"fsdp-{source.name}{again}", source)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(source)(torch.arange(30)[None]).logits
    torch.testing.assert_close(torch.load(folder / f"fsdp-{source.name}.pt"), expected)


@pytest.mark.parametrize("name", ["tied-in-files", "gpt2", "experts-in-files", "two-heads"])
def test_zero_3_holds_what_the_files_do(folder: Path, name: str) -> None:
    assert_equal(folder / f"zero-model-{name}", folder / f"model-{name}")


@pytest.mark.parametrize("engine", ["fsdp", "zero"])
def test_files_of_a_model_without_a_head(folder: Path, engine: str) -> None:
    expected = weights(folder / "model-headless")
    actual = weights(folder / f"{engine}-model-headless")
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


@pytest.mark.parametrize("engine", ["fsdp", "zero"])
@pytest.mark.parametrize("rank", [0, 1])
def test_missing_weights_are_refused(folder: Path, engine: str, rank: int) -> None:
    refusal = (folder / f"{engine}-model-lacking.{rank}").read_text()
    assert "lack" in refusal
    assert "first 'model.layers.1.mlp.up_proj.weight'" in refusal
    assert refusal.endswith("give a complete model")


@pytest.mark.parametrize("rank", [0, 1])
def test_fused_experts_are_refused_under_fsdp2(folder: Path, rank: int) -> None:
    refusal = (folder / f"fsdp-model-experts-in-files.{rank}").read_text()
    assert "MixtralForCausalLM has in memory" in refusal
    assert "zero-3" in refusal


@pytest.mark.parametrize(("engine", "name"), [("fsdp", "gpt2"), ("fsdp", "tied"), ("zero", "tied")])
def test_new_weights_are_drawn_as_transformers_does(
    folder: Path, make_model, engine: str, name: str
) -> None:
    torch.manual_seed(0)
    expected = MAKE[name](make_model).state_dict()
    actual = weights(folder / f"{engine}-random-{name}")
    assert actual.keys() == expected.keys()
    for key, value in expected.items():  # of at least 384 draws, or constant
        torch.testing.assert_close(actual[key].std(), value.std(), rtol=0.2, atol=0, msg=key)
        if value.std() == 0:
            assert torch.equal(actual[key], value), key
