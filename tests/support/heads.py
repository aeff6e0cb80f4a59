"""Tiny models whose heads differ: with a bias, tied, scaled, capped."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedModel,
)

VOCABULARY = 61
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_CONFIGS = {
    "llama": lambda: LlamaConfig(**_SIZES, tie_word_embeddings=False),
    "tied": lambda: LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "bias": lambda: PhiConfig(**_SIZES, partial_rotary_factor=0.5),
    "gemma2": lambda: Gemma2Config(**_SIZES, head_dim=8, final_logit_softcapping=0.5),
    "gemma3": lambda: Gemma3TextConfig(**_SIZES, head_dim=8, sliding_window=4),
    "granite": lambda: GraniteConfig(**_SIZES, logits_scaling=8.0),
    "cohere": lambda: CohereConfig(**_SIZES, logit_scale=0.25),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32,
        bos_token_id=1, eos_token_id=2,
    ),
}  # fmt: skip
HEADS = tuple(_CONFIGS)


def model_with(head: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A model of ``HEADS`` in eval mode, whose head's bias, if any, is not zero."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_CONFIGS[head]()).eval()
    if (bias := model.get_output_embeddings().bias) is not None:
        torch.nn.init.normal_(bias)
    return model.to(dtype)


def chunks_of(places: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have logits of so many places held at a time."""
    for module in ("loss", "chunks"):
        monkeypatch.setattr(f"freezetrain.head.{module}.places_at_once", lambda *_: places)
