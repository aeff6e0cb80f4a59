"""What a forward pass keeps, against autograd on real tensors and against a formula."""

import contextlib

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Qwen3Config,
)

from freezetrain.nll import next_token_nll
from freezetrain.training.activations import count_activations
from freezetrain.training.checkpointed import checkpoint_blocks

SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 500, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "qwen3": Qwen3Config(**SMALL),
    "gemma2": Gemma2Config(**SMALL, pad_token_id=0),
    "gpt2": GPT2Config(
        n_embd=64, n_layer=3, n_head=4, vocab_size=500, bos_token_id=1, eos_token_id=1,
        attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
    ),
}  # fmt: skip
BATCH, LENGTH = 2, 48


def meta(config, dtype=torch.float32):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def really_kept(config, dtype, autocast, every=False):
    """Bytes of all storages that autograd holds on to, other than weights and buffers."""
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).train()
    if every:
        checkpoint_blocks(model, every)
    known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            held[storage._cdata] = storage  # kept alive, so that no address comes twice
        return tensor

    ids = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    lower = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with lower, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = next_token_nll(model(input_ids=ids, use_cache=False).logits, ids).sum()
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in held.values())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)],
)
def test_as_autograd_keeps(name, dtype, autocast):
    counted = count_activations(meta(CONFIGS[name]), BATCH, LENGTH, dtype, autocast)
    assert counted.kept(False) == pytest.approx(really_kept(CONFIGS[name], dtype, autocast), 0.005)
    assert len(counted.blocks) == 3
    assert sum(counted.blocks) > 0.95 * 3 * max(counted.blocks)


def test_checkpointing_keeps_the_inputs_of_blocks():
    config = CONFIGS["llama"]
    counted = count_activations(meta(config), BATCH, LENGTH)
    assert counted.inputs == (BATCH * LENGTH * 64 * 4,) * 3
    assert counted.kept(True) == really_kept(config, torch.float32, False, every=True)
    assert counted.kept(True) < counted.kept(False) / 2


@pytest.mark.parametrize(("every", "again"), [(2, 1), (3, 0)])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_checkpointing_of_some_blocks_keeps_the_inputs_of_those(name, every, again):
    counted = count_activations(meta(CONFIGS[name]), BATCH, LENGTH)
    kept = really_kept(CONFIGS[name], torch.float32, False, every)
    assert counted.kept(every) == pytest.approx(kept, rel=0.01)
    saved = counted.blocks[again] - counted.inputs[again]
    assert counted.kept(False) - counted.kept(every) == saved > 0.2 * counted.kept(False)


def test_gpt_2_is_near_the_formula_of_the_literature():
    """Korthikanti et al., arXiv 2205.05198, equation 2: 16 bits, dropout, plain attention."""
    length, batch, hidden, heads = 256, 2, 128, 4
    config = GPT2Config(
        n_embd=hidden, n_head=heads, n_layer=2, vocab_size=500, n_positions=length,
        activation_function="gelu", bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    config._attn_implementation = "eager"
    counted = count_activations(meta(config), batch, length, torch.bfloat16)
    formula = length * batch * hidden * (34 + 5 * heads * length / hidden)
    assert max(counted.blocks) == pytest.approx(formula, rel=0.15)


def test_the_model_that_is_counted_stays_as_it_is():
    model = meta(CONFIGS["llama"], torch.bfloat16).eval()
    count_activations(model, 1, 8)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_mixture_of_experts_is_counted():
    config = MixtralConfig(**SMALL, num_local_experts=4)
    counted = count_activations(meta(config), BATCH, LENGTH)
    assert counted.kept(False) == pytest.approx(really_kept(config, torch.float32, False), 0.05)
