"""What models take: how many tokens, wherever their configuration says it, and no cache."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

from freezetrain.errors import UserError
from freezetrain.evaluation import Document, evaluate_documents
from freezetrain.forward import accepted, context_length
from freezetrain.generation.greedy import continuations
from freezetrain.models import check_length
from freezetrain.regions.residual_stream import residual_directions
from freezetrain.scoring import compute_scores

CONTEXT = 48

SIZES = {
    "vocab_size": 400, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip

SEES = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip

ENDS = {"bos_token_id": 0, "eos_token_id": 1}


def wrapped() -> transformers.PretrainedConfig:
    """A language model inside one that sees images too."""
    text = transformers.Gemma3TextConfig(**SIZES, max_position_embeddings=CONTEXT)
    vision = transformers.SiglipVisionConfig(**SEES)
    return transformers.Gemma3Config(
        text_config=text.to_dict(), vision_config=vision.to_dict(), mm_tokens_per_image=4
    )


def rwkv() -> transformers.RwkvConfig:
    return transformers.RwkvConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=2, attention_hidden_size=16,
        context_length=CONTEXT, **ENDS,
    )  # fmt: skip


CONFIGURATIONS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, max_position_embeddings=CONTEXT),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=400, n_embd=16, n_layer=1, n_head=2, n_positions=CONTEXT
    ),
    "mpt": lambda: transformers.MptConfig(
        vocab_size=400, d_model=16, n_heads=2, n_layers=1, max_seq_len=CONTEXT, **ENDS
    ),
    "rwkv": rwkv,
    "wrapped": wrapped,
}


def build(name: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(CONFIGURATIONS[name]()).eval()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_length_is_checked_wherever_the_configuration_says_it(name):
    with torch.device("meta"):
        model = build(name)
    assert context_length(model) == CONTEXT
    check_length(model, CONTEXT)
    with pytest.raises(UserError, match=f"the model was built for {CONTEXT}; use {CONTEXT} or les"):
        check_length(model, CONTEXT + 1)
    texts = {"xx": [Document([1] * 60, 60)]}
    with pytest.raises(UserError, match=f"use {CONTEXT} or less"):
        evaluate_documents(model, texts, max_length=CONTEXT + 1)


@pytest.mark.parametrize(
    ("configuration", "tokens"),
    [
        ({}, None),
        ({"max_position_embeddings": None, "seq_length": 20}, 20),  # BLOOM's published ones
        ({"max_position_embeddings": -1}, None),
        ({"llm_config": {"max_position_embeddings": 30}, "max_position_embeddings": 7}, 30),
        ({"text_config": None, "n_ctx": 9}, 9),
        ({"max_sequence_length": 11}, 11),
    ],
)
def test_other_configurations(configuration, tokens):
    model = nn.Identity()
    model.config = SimpleNamespace(**configuration)
    assert context_length(model) == tokens


def test_a_plain_module_is_given_what_it_takes():
    class Plain(nn.Module):
        def forward(self, input_ids): ...

    assert accepted(Plain(), {"use_cache": False}) == {}
    assert context_length(Plain()) is None


def score(model, _):
    compute_scores(model, [torch.arange(12).reshape(2, 6)], "taylor")


def continue_text(model, tokenizer):
    continuations(model, tokenizer, ["ab"], 2, cache=False)


def watch(model, _):
    evaluate_documents(model, {"xx": [Document([1] * 9, 9)]}, max_length=8)


def directions(model, _):
    residual_directions(model)


@pytest.mark.parametrize("use", [score, continue_text, watch, directions])
def test_no_forward_pass_builds_a_cache(use, make_model, tokenizer, monkeypatch):
    def built(*_, **__):
        raise AssertionError("a cache was built")

    monkeypatch.setattr(transformers.DynamicCache, "__init__", built)
    model = make_model()
    with pytest.raises(AssertionError, match="a cache was built"):
        model(input_ids=torch.ones(1, 2, dtype=torch.int64))  # what it does unless told
    use(model, tokenizer)


def test_scores_of_a_model_whose_state_is_written_in_place(tokenizer):
    model = build("rwkv")
    batch = torch.arange(24).reshape(2, 12)
    scores = compute_scores(model, [batch], "taylor")
    model.train()  # in which mode RWKV keeps no state
    model(input_ids=batch, labels=batch).loss.backward()
    for name, score in scores.items():
        parameter = model.get_parameter(name)
        torch.testing.assert_close(score, (parameter * parameter.grad).abs().detach())
