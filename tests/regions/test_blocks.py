"""Blocks, norms and embeddings of real architectures, built small, and the regions made of them."""

import pytest
import torch
import transformers
from decoders import tiny_gpt2
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from freezetrain.errors import UserError
from freezetrain.regions import (
    Region,
    block_parameters,
    decoder_blocks,
    embedding_parameters,
    fingerprint,
    layers_region,
    vocabulary_region,
)
from freezetrain.regions.blocks import input_dim, is_norm

SIZES = {
    "vocab_size": 40,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GPT2_SIZES = {
    **{key: SIZES[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")},
    "n_embd": 8,
    "n_layer": 3,
    "n_head": 2,
    "n_positions": 16,
}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 4}

# architecture: (configuration, the blocks' list, parameters of block 0 without norms, and norms,
#                input embedding, output head)
LLAMA = (
    "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight "
    "self_attn.o_proj.weight mlp.gate_proj.weight mlp.up_proj.weight mlp.down_proj.weight"
)
QWEN2_BIASES = "self_attn.q_proj.bias self_attn.k_proj.bias self_attn.v_proj.bias"
ATTENTION = " ".join(LLAMA.split()[:4])
FUSED = "mlp.gate.weight mlp.experts.gate_up_proj mlp.experts.down_proj"
TWO_NORMS = "input_layernorm.weight post_attention_layernorm.weight"
TWO_FULL_NORMS = f"{TWO_NORMS} input_layernorm.bias post_attention_layernorm.bias"
QK_NORMS = f"{TWO_NORMS} self_attn.q_norm.weight self_attn.k_norm.weight"
GEMMA2_NORMS = f"{TWO_NORMS} pre_feedforward_layernorm.weight post_feedforward_layernorm.weight"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def with_bias(*layers: str) -> str:
    return " ".join(f"{layer}.weight {layer}.bias" for layer in layers)


NEOX_LAYERS = with_bias(
    "attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
)
ARCHITECTURES = {
    "Llama": (SIZES, "model.layers", LLAMA, TWO_NORMS, EMBED, HEAD),
    "Mistral": (SIZES, "model.layers", LLAMA, TWO_NORMS, EMBED, HEAD),
    "Qwen2": (SIZES, "model.layers", f"{LLAMA} {QWEN2_BIASES}", TWO_NORMS, EMBED, HEAD),
    "Qwen3": ({**SIZES, "head_dim": 4}, "model.layers", LLAMA, QK_NORMS, EMBED, HEAD),
    "Gemma2": ({**SIZES, "head_dim": 4}, "model.layers", LLAMA, GEMMA2_NORMS, EMBED, EMBED),
    "GPT2": (
        GPT2_SIZES,
        "transformer.h",
        with_bias("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        with_bias("ln_1", "ln_2"),
        "transformer.wte.weight",
        "transformer.wte.weight",
    ),
    "GPTJ": (
        {**GPT2_SIZES, "rotary_dim": 2},
        "transformer.h",
        "attn.k_proj.weight attn.v_proj.weight attn.q_proj.weight attn.out_proj.weight "
        + with_bias("mlp.fc_in", "mlp.fc_out"),
        with_bias("ln_1"),
        "transformer.wte.weight",
        HEAD,
    ),
    "GPTNeoX": (
        {key: value for key, value in SIZES.items() if key != "num_key_value_heads"},
        "gpt_neox.layers",
        NEOX_LAYERS,
        TWO_FULL_NORMS,
        "gpt_neox.embed_in.weight",
        HEAD,
    ),
    "Bloom": (
        {"vocab_size": 40, "hidden_size": 8, "n_layer": 3, "n_head": 2},
        "transformer.h",
        NEOX_LAYERS.replace("attention", "self_attention"),
        TWO_FULL_NORMS,
        "transformer.word_embeddings.weight",
        "transformer.word_embeddings.weight",
    ),
    "OPT": (
        {**SIZES, "ffn_dim": 12, "word_embed_proj_dim": 8},
        "model.decoder.layers",
        with_bias(*(f"self_attn.{x}_proj" for x in ("k", "v", "q", "out")), "fc1", "fc2"),
        with_bias("self_attn_layer_norm", "final_layer_norm"),
        "model.decoder.embed_tokens.weight",
        "model.decoder.embed_tokens.weight",
    ),
    "Falcon": (
        {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2},
        "transformer.h",
        " ".join(name for name in NEOX_LAYERS.split() if "bias" not in name).replace(
            "attention", "self_attention"
        ),
        with_bias("input_layernorm"),
        "transformer.word_embeddings.weight",
        "transformer.word_embeddings.weight",
    ),
    "Phi": (
        SIZES,
        "model.layers",
        with_bias(*(f"self_attn.{x}" for x in ("q_proj", "k_proj", "v_proj", "dense")))
        + " "
        + with_bias("mlp.fc1", "mlp.fc2"),
        with_bias("input_layernorm"),
        EMBED,
        HEAD,
    ),
    "Mixtral": (
        {**SIZES, "num_local_experts": 3},
        "model.layers",
        f"{ATTENTION} {FUSED}",
        TWO_NORMS,
        EMBED,
        HEAD,
    ),
    "Qwen2Moe": (
        {**SIZES, **EXPERTS, "shared_expert_intermediate_size": 4},
        "model.layers",
        f"{ATTENTION} {QWEN2_BIASES} {FUSED} mlp.shared_expert_gate.weight "
        + LLAMA.split(maxsplit=4)[4].replace("mlp.", "mlp.shared_expert."),
        TWO_NORMS,
        EMBED,
        HEAD,
    ),
    "Qwen3Moe": (
        {**SIZES, **EXPERTS, "head_dim": 4},
        "model.layers",
        f"{ATTENTION} {FUSED}",
        QK_NORMS,
        EMBED,
        HEAD,
    ),
}


def build(architecture: str, **changes: object) -> nn.Module:
    config = getattr(transformers, f"{architecture}Config")(
        **{**ARCHITECTURES[architecture][0], **changes}
    )
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_finds_blocks_norms_and_embeddings(architecture: str) -> None:
    _, blocks, weights, norms, embedding, head = ARCHITECTURES[architecture]
    model = build(architecture)
    named_blocks = decoder_blocks(model)
    assert [name for name, _ in named_blocks] == [f"{blocks}.{layer}" for layer in range(3)]
    assert [block for _, block in named_blocks] == list(model.get_submodule(blocks))
    expected = {f"{blocks}.{layer}.{name}" for layer in range(3) for name in weights.split()}
    assert set(block_parameters(model)) == expected
    expected |= {f"{blocks}.{layer}.{name}" for layer in range(3) for name in norms.split()}
    with_norms = block_parameters(model, norms=True)
    assert set(with_norms) == expected
    assert all(parameter is model.get_parameter(name) for name, parameter in with_norms.items())
    rows = embedding_parameters(model)
    assert (rows["input"], rows["output"]) == (embedding, head)
    assert ("bias" in rows) == (architecture in {"GPTJ", "Phi"})


def test_one_block_and_a_tied_head_are_found() -> None:
    model = build("Llama", num_hidden_layers=1, tie_word_embeddings=True)
    assert [name for name, _ in decoder_blocks(model)] == ["model.layers.0"]
    assert embedding_parameters(model) == {"input": EMBED, "output": EMBED}


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Falcon"])
def test_input_dim_is_where_the_layer_contracts(architecture: str) -> None:
    model = build(architecture)
    name = next(
        name
        for name, p in block_parameters(model).items()
        if p.ndim == 2 and p.shape[0] != p.shape[1]
    )
    layer = model.get_submodule(name.removesuffix(".weight"))
    features = layer.weight.shape[input_dim(model, name)]
    assert layer(torch.zeros(1, features)).shape[-1] == layer.weight.numel() // features


def test_fused_experts_stored_transposed_are_known() -> None:
    config = transformers.GptOssConfig(
        **SIZES, head_dim=4, num_local_experts=3, num_experts_per_tok=2
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert model.get_parameter(name).shape == (3, 8, 24)  # [experts, in, gate and up]
    assert input_dim(model, name) == -2
    assert input_dim(model, "model.layers.0.self_attn.o_proj.weight") == -1
    assert not is_norm(model, name)


@pytest.mark.parametrize("transposed", [False, True])
def test_fused_experts_are_told_by_their_shapes(transposed: bool) -> None:
    """Llama 4 stores [E, in, out] without a mark, Mixtral [E, out, in]."""
    experts = torch.nn.Module()
    up, down = torch.zeros(3, 24, 8), torch.zeros(3, 8, 12)
    if transposed:
        up, down = up.transpose(1, 2), down.transpose(1, 2)
    experts.gate_up_proj = torch.nn.Parameter(up)
    experts.down_proj = torch.nn.Parameter(down)
    model = torch.nn.ModuleDict({"experts": experts})
    expected = -2 if transposed else -1
    assert input_dim(model, "experts.gate_up_proj") == expected
    assert input_dim(model, "experts.down_proj") == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrappers_of_torch_leave_no_trace_in_names() -> None:
    model = build("Llama")
    model.model.layers = nn.ModuleList(map(checkpoint_wrapper, model.model.layers))
    expected = build("Llama")
    for wrapped in (model, torch.compile(model)):
        assert list(block_parameters(wrapped)) == list(block_parameters(expected))
        assert embedding_parameters(wrapped) == embedding_parameters(expected)
        assert [name for name, _ in decoder_blocks(wrapped)] == [
            f"model.layers.{layer}" for layer in range(3)
        ]
    assert is_norm(model, "model.layers.1.input_layernorm.weight")


def block(width: int) -> nn.Module:
    return nn.TransformerEncoderLayer(width, 1, width)


class Towers(nn.Module):
    def __init__(self, second_width: int) -> None:
        super().__init__()
        self.first = nn.ModuleList([block(16), block(16)])
        self.second = nn.ModuleList([block(second_width), block(second_width)])


def test_the_larger_of_two_lists_wins_only_by_far() -> None:
    assert [name for name, _ in decoder_blocks(Towers(4))] == ["first.0", "first.1"]
    with pytest.raises(UserError, match=r"'first' and 'second' of like size.*pass the submodule"):
        decoder_blocks(Towers(14))


def test_a_list_of_experts_inside_a_block_is_no_list_of_blocks() -> None:
    only = block(8)
    only.experts = nn.ModuleList([block(32), block(32)])
    model = nn.Module()
    model.layers = nn.ModuleList([only])
    assert decoder_blocks(model) == [("layers.0", only)]
    model.layers.append(nn.Linear(2, 2))  # no family any more: refused rather than looked into
    with pytest.raises(UserError, match="found none"):
        decoder_blocks(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "found none in Linear"),
        (nn.Sequential(nn.ModuleList([nn.Linear(2, 2), nn.Embedding(3, 2)])), "found none"),
        (nn.Sequential(nn.ModuleList([nn.ReLU(), nn.ReLU()])), "found none"),
        (nn.Transformer(4, 2, 2, 2, 4, batch_first=True), "encoder.layers"),
    ],
)
def test_refuses_a_model_without_clear_blocks(model: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        block_parameters(model)


def test_refuses_an_encoder_decoder() -> None:
    config = transformers.T5Config(
        vocab_size=40, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2
    )
    model = transformers.T5ForConditionalGeneration(config)
    with pytest.raises(UserError, match="encoder-decoder T5ForConditionalGeneration"):
        decoder_blocks(model)


def test_refuses_a_model_without_embeddings_or_head() -> None:
    with pytest.raises(UserError, match=r"get_input_embeddings\(\)"):
        embedding_parameters(nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"get_output_embeddings\(\).*got LlamaModel"):
        embedding_parameters(build("Llama").model)


@pytest.mark.parametrize(
    ("first", "last", "patterns"),
    [
        (1, 0, ["transformer.h.0.attn.*", "transformer.h.0.mlp.*"]),
        (0, 1, ["transformer.h.1.attn.*", "transformer.h.1.mlp.*"]),
        (1, 1, ["transformer.h.*.attn.*", "transformer.h.*.mlp.*"]),
    ],
)
def test_first_and_last_blocks_with_their_biases(first: int, last: int, patterns: list) -> None:
    model = tiny_gpt2()
    assert layers_region(model, first, last) == Region.tensors(model, patterns)
    whole = [pattern.partition("attn")[0].partition("mlp")[0] + "*" for pattern in patterns]
    assert layers_region(model, first, last, norms=True) == Region.tensors(model, whole)


@pytest.mark.parametrize(("first", "last"), [(0, 0), (3, 0), (1, 2), (-1, 2)])
def test_refuses_blocks_that_are_not_there(first: int, last: int) -> None:
    with pytest.raises(UserError, match="expected 1 to 2 decoder blocks in all"):
        layers_region(tiny_gpt2(), first, last)


COUNTS = torch.tensor([9, 0, 2, 3, 1, 0, 7, 3])


def llama(tied: bool, rows: int = 8) -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=rows,
            hidden_size=4,
            intermediate_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=tied,
        )
    )


def rows_of(mask: Tensor) -> list[int]:
    assert torch.equal(mask.all(-1), mask.any(-1))  # rows are whole
    return mask.all(-1).nonzero().flatten().tolist()


@pytest.mark.parametrize(("min_count", "rare"), [(1, [1, 5]), (2, [1, 4, 5]), (3, [1, 2, 4, 5])])
def test_takes_the_rows_of_rare_tokens_in_embedding_and_head(min_count: int, rare: list) -> None:
    model = llama(tied=False)
    region = vocabulary_region(model, COUNTS, min_count)
    assert {name: rows_of(mask) for name, mask in region.masks().items()} == {
        EMBED: rare,
        HEAD: rare,
    }
    assert region.nbytes == 2 * 4 * len(rare) or region.nbytes == 2 * 4  # rows, or bits if smaller
    assert region.base is not None
    assert region.base.fingerprint == fingerprint(model)
    assert region.made == {
        "operation": "vocabulary",
        "min_count": min_count,
        "rows": len(rare),
        "tokens": 25,
    }


def test_a_tied_head_appears_once_and_resolves_to_both() -> None:
    model = llama(tied=True)
    region = vocabulary_region(model, COUNTS, 1)
    assert region.names == [EMBED]
    (target,) = region.resolve(model)
    assert target.parameter is model.lm_head.weight
    assert rows_of(region.masks()[EMBED]) == [1, 5]


def test_padded_rows_count_as_never_seen() -> None:
    region = vocabulary_region(llama(tied=False, rows=11), COUNTS, 1)
    assert rows_of(region.masks()[HEAD]) == [1, 5, 8, 9, 10]


def test_the_bias_of_a_head_is_held_with_its_rows() -> None:
    config = transformers.GPTJConfig(
        vocab_size=8, n_embd=4, n_layer=1, n_head=1, rotary_dim=4, bos_token_id=0, eos_token_id=0
    )
    region = vocabulary_region(transformers.GPTJForCausalLM(config), COUNTS, 1)
    assert region.names == ["lm_head.bias", HEAD, "transformer.wte.weight"]
    assert region.indices("lm_head.bias").tolist() == [1, 5]


@pytest.mark.parametrize(
    ("counts", "min_count", "message"),
    [
        (
            torch.ones(9, dtype=torch.int64),
            1,
            r"at most the embedding's 8 rows, got torch.int64 \[9\]",
        ),
        (torch.ones(8), 1, r"got torch.float32 \[8\]"),
        (torch.ones(2, 4, dtype=torch.int64), 1, r"got torch.int64 \[2, 4\]"),
        (COUNTS, 0, "min_count of 1 or more.*min_count=0"),
        (COUNTS - 1, 1, "smallest count of -1"),
        (COUNTS + 5, 5, "the rarest has 5: raise min_count"),
    ],
)
def test_refuses_unusable_counts(counts: Tensor, min_count: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        vocabulary_region(llama(tied=False), counts, min_count)


def test_refuses_a_head_with_other_rows() -> None:
    model = llama(tied=False)
    model.set_output_embeddings(nn.Linear(4, 9))
    with pytest.raises(UserError, match=r"expected 8 rows, one a token, in 'lm_head.weight'"):
        vocabulary_region(model, COUNTS, 1)
