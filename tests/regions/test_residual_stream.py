"""The residual stream's dimensions: found by shape and by running, checked by what models do."""

import pytest
import torch
from decoders import tiny_gpt2, tiny_gpt_oss, tiny_mixtral

from freezetrain.errors import UserError
from freezetrain.regions import Region, ablate, decoder_blocks, perturb
from freezetrain.regions.residual_stream import (
    hidden_size,
    residual_directions,
    weights_of_dimension,
)

READS = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "c_attn", "c_fc"} | {
    "gate",  # a router
    "router",
    "gate_up_proj",
}
WRITES = {"o_proj", "down_proj", "c_proj"}


@pytest.fixture(params=["llama", "gpt2", "mixtral", "gpt-oss"])
def decoder(request, make_model):
    if request.param == "llama":
        return make_model()
    made = {"gpt2": tiny_gpt2, "mixtral": tiny_mixtral, "gpt-oss": tiny_gpt_oss}
    return made[request.param]()


def test_what_reads_and_what_writes(decoder):
    """q, k, v and the attention's output are square here: their shape does not tell."""
    directions = residual_directions(decoder)
    for name, direction in directions.items():
        leaf = name.removesuffix(".weight").rpartition(".")[2]
        assert (leaf in READS, leaf in WRITES) == (direction == "columns", direction == "rows")
    matrices = [name for name, p in decoder.named_parameters() if p.ndim > 1 and "bias" not in name]
    matrices = [name for name in matrices if ".h." in name or ".layers." in name]
    assert sorted(directions) == sorted(matrices)


def stream(model, ids, hooked=()):
    """Input of the first block and output of the last [B, L, H]."""
    kept = {}
    blocks = [block for _, block in decoder_blocks(model)]
    first = blocks[0].register_forward_pre_hook(
        lambda _, args, options: kept.update(first=(args or [options["hidden_states"]])[0].clone()),
        with_kwargs=True,
    )
    last = blocks[-1].register_forward_hook(
        lambda _, __, output: kept.update(last=output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    first.remove()
    last.remove()
    return kept["first"], kept["last"], logits


def test_zeroing_a_dimension_cuts_it_off_from_the_blocks(decoder):
    ids = torch.arange(12).view(2, 6)
    region = weights_of_dimension(decoder, 5)
    others = [place for place in range(hidden_size(decoder)) if place != 5]
    with ablate(decoder, region):
        first, last, logits = stream(decoder, ids)
        assert torch.equal(first[..., 5], last[..., 5])  # nothing was written to it
        assert all((first[..., other] != last[..., other]).any() for other in others)
        # And nothing is read from it: what the norms let through of it does not matter.
        norms = Region({name: region[name] for name in region if "norm" in name or ".ln_" in name})
        with perturb(decoder, norms, value=3.0):
            assert torch.equal(stream(decoder, ids)[2], logits)
    assert not torch.equal(stream(decoder, ids)[2], logits)


def test_norms_and_biases_that_belong_to_a_dimension():
    region = weights_of_dimension(tiny_gpt2(), 5)
    vectors = {name.removeprefix("transformer.h.0.") for name in region if name.startswith(
        "transformer.h.0.") and len(region.shapes[name]) == 1}  # fmt: skip
    assert vectors == {
        "ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias",
        "attn.c_proj.bias", "mlp.c_proj.bias",
    }  # fmt: skip
    assert all(region.indices(f"transformer.h.0.{name}").tolist() == [5] for name in vectors)
    matrix = region.masks()["transformer.h.0.mlp.c_proj.weight"]  # [in, out]
    assert matrix[:, 5].all()
    assert matrix.sum() == 24


def test_all_experts_lose_the_dimension():
    masks = weights_of_dimension(tiny_mixtral(), 3, ["*experts*"]).masks()
    up = masks["model.layers.0.mlp.experts.gate_up_proj"]  # [E, 2 * inner, H]
    assert up[:, :, 3].all()
    assert up.sum() == 3 * 48
    down = masks["model.layers.1.mlp.experts.down_proj"]  # [E, H, inner]
    assert down[:, 3].all()
    assert down.sum() == 3 * 24


def test_patterns_choose_parameters(model):
    region = weights_of_dimension(model, 2, ["*.1.input_layernorm.weight"])
    assert {name: region.indices(name).tolist() for name in region} == {
        "model.layers.1.input_layernorm.weight": [2]
    }


@pytest.mark.parametrize(
    ("dimension", "patterns", "sentence"),
    [
        (16, None, "expected a dimension from 0 to 15, got 16"),
        (-1, None, "got -1"),
        (3, ["lm_head.weight"], "none of the parameters named by .*has dimension 3"),
        (3, ["*.input_layernrm.weight"], "did you mean"),
    ],
)
def test_refusals(model, dimension, patterns, sentence):
    with pytest.raises(UserError, match=sentence):
        weights_of_dimension(model, dimension, patterns)


def test_a_model_without_a_width_is_refused():
    with pytest.raises(UserError, match="hidden_size"):
        hidden_size(torch.nn.Linear(2, 2))
