"""An exported folder has the names and shapes that llama.cpp's converter to GGUF looks for.

Names by the maps of the ``gguf`` package, which the converter uses.
"""

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

from freezetrain.training.export import export

gguf = pytest.importorskip("gguf", reason="the package gguf of llama.cpp is not installed")

HEADS, KEY_HEADS, HEAD, HIDDEN, INNER, TOKENS = 4, 2, 8, 16, 24, 400
SIZES = {
    "vocab_size": TOKENS, "hidden_size": HIDDEN, "intermediate_size": INNER, "head_dim": HEAD,
    "num_hidden_layers": 2, "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS,
}  # fmt: skip
CONFIGS = {
    "LLAMA": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "QWEN3": Qwen3Config(**SIZES, tie_word_embeddings=True),
    "GEMMA3": Gemma3TextConfig(**SIZES, tie_word_embeddings=True),
}
SHAPES = {
    "TOKEN_EMBD": (TOKENS, HIDDEN),
    "OUTPUT": (TOKENS, HIDDEN),
    "ATTN_Q": (HEADS * HEAD, HIDDEN),
    "ATTN_K": (KEY_HEADS * HEAD, HIDDEN),
    "ATTN_V": (KEY_HEADS * HEAD, HIDDEN),
    "ATTN_OUT": (HIDDEN, HEADS * HEAD),
    "FFN_GATE": (INNER, HIDDEN),
    "FFN_UP": (INNER, HIDDEN),
    "FFN_DOWN": (HIDDEN, INNER),
    "ATTN_Q_NORM": (HEAD,),
    "ATTN_K_NORM": (HEAD,),
}  # all others are norms [HIDDEN]


@pytest.mark.parametrize("tied_head", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_has_its_place(name, tied_head, tmp_path, tokenizer):
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    export(model, tokenizer, tmp_path / "model", tied_head=tied_head)
    held = load_file(tmp_path / "model" / "model.safetensors")
    architecture = gguf.MODEL_ARCH[name]
    places = gguf.get_tensor_name_map(architecture, 2)
    kinds = set()
    for tensor, values in held.items():
        kind, _ = places.get_type_and_name(tensor, try_suffixes=(".weight",)) or pytest.fail(tensor)
        kinds.add(kind)
        assert tuple(values.shape) == SHAPES.get(kind.name, (HIDDEN,)), tensor
    known = set(gguf.MODEL_TENSORS[architecture])
    absent = {kind.name for kind in known - kinds}
    # Experts, frequencies, and a tied head, for which the converter takes the embedding.
    allowed = {kind for kind in absent if "EXP" in kind or "ROPE" in kind or "INP" in kind}
    allowed |= {"ATTN_ROT_EMBD", "DENSE_2_OUT", "DENSE_3_OUT", "OUTPUT"}
    assert kinds <= known
    assert absent <= allowed
    tied = CONFIGS[name].tie_word_embeddings
    assert ("lm_head.weight" in held) == (tied_head or not tied)
    if tied and tied_head:
        assert held["lm_head.weight"].equal(held["model.embed_tokens.weight"])
