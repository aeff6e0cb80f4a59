"""Drawing entries anew: what a model starts out with, and all bits back afterwards."""

import pytest
import torch
from decoders import tiny_gpt2
from transformers import GemmaConfig, GemmaForCausalLM

from freezetrain.regions import Region, perturb


def bits(model):
    return {name: p.detach().clone().view(torch.int32) for name, p in model.named_parameters()}


def test_as_the_model_was_initialized_and_back():
    model = tiny_gpt2()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = bits(model)
    region = Region.tensors(model, ["transformer.h.*", "*wte*"])
    with perturb(model, region, reinitialize=0):
        for name, parameter in model.transformer.h.named_parameters():
            if name.endswith("bias"):
                assert not parameter.any(), name
            elif "ln_" in name:
                assert bool((parameter == 1).all()), name
            else:
                spread = parameter.std().item()
                assert spread == pytest.approx(model.config.initializer_range, rel=0.2), name
                assert abs(parameter.mean().item()) < 0.005
        assert torch.equal(model.transformer.ln_f.weight.view(torch.int32), before[
            "transformer.ln_f.weight"])  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in bits(model).items())


def test_entries_alone_are_drawn_and_a_seed_says_which(model):
    name = "model.layers.0.mlp.up_proj.weight"
    mask = torch.rand(24, 16, generator=torch.manual_seed(0)) < 0.3
    region, weight = Region.from_masks({name: mask}), model.get_parameter(name)
    before, seen = weight.detach().clone(), []
    for seed in (0, 0, 1):
        with perturb(model, region, reinitialize=seed):
            assert torch.equal(weight[~mask], before[~mask])
            assert bool((weight[mask] != before[mask]).all())
            seen.append(weight.detach().clone())
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_a_parameter_of_its_own_spread_where_the_configuration_has_none():
    layer = torch.nn.Sequential(torch.nn.Linear(100, 100))
    torch.nn.init.normal_(layer[0].weight, std=7.0)
    with perturb(layer, Region.tensors(layer, ["0.weight"]), reinitialize=0):
        assert layer[0].weight.std().item() == pytest.approx(7, rel=0.05)


def test_norms_that_multiply_by_one_more_than_their_weight():
    """Gemma's start at 0."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 40}
    model = GemmaForCausalLM(GemmaConfig(**sizes, **heads))
    weight = model.model.layers[0].input_layernorm.weight
    with torch.no_grad():
        weight.fill_(0.3)
    with perturb(model, Region.tensors(model, ["*input_layernorm*"]), reinitialize=0):
        assert not weight.any()
    assert bool((weight == 0.3).all())
