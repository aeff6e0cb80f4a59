"""Ablated and perturbed entries change inside the block and come back bit for bit."""

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from decoders import tiny_gpt2
from torch import nn
from transformers import GemmaConfig, GemmaForCausalLM

from freezetrain.errors import UserError
from freezetrain.regions import Region, ablate, perturb

BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16}


class Tied(nn.Module):
    """An embedding tied to the head, a head with awkward values, and a transposed parameter."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(6, 4)
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.turned = nn.Parameter(torch.randn(5, 3).t())
        self.to(dtype)
        bits = torch.arange(16).to(BITS[dtype]) + torch.tensor(torch.nan, dtype=dtype).view(
            BITS[dtype]
        )
        with torch.no_grad():
            self.layer.weight.view(-1).copy_(bits.view(dtype))  # sixteen different NaNs
            self.layer.weight[0, :] = -0.0
            self.layer.weight[1, 0] = torch.inf
            self.layer.bias.fill_(torch.finfo(dtype).smallest_normal / 4)  # subnormal


def bits_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        n: p.detach().clone().contiguous().view(BITS[p.dtype]) for n, p in model.named_parameters()
    }


def assert_same_bits(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = bits_of(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def some_region(model: nn.Module) -> Region:
    """Every way of storing entries: indices, rows, columns, a whole tensor, bits."""
    masks = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    masks["embed.weight"][2:4] = True
    masks["layer.weight"].view(-1)[::2] = True
    masks["layer.bias"][:] = True
    masks["turned"][:, 1] = True
    masks["turned"][0, 4] = True
    return Region.from_masks(masks)


@pytest.mark.parametrize("dtype", BITS)
def test_zeroes_exactly_the_region_and_puts_every_bit_back(dtype: torch.dtype) -> None:
    model = Tied(dtype)
    before, region = bits_of(model), some_region(model)
    with ablate(model, region):
        inside = bits_of(model)
        for name, mask in region.masks().items():
            assert not inside[name][mask].any()  # plus zero, not minus zero
            assert torch.equal(inside[name][~mask], before[name][~mask])
    assert_same_bits(model, before)


def test_the_model_computes_without_the_region() -> None:
    model = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    region = Region.columns(model, {"weight": [1]})
    with ablate(model, region), torch.no_grad():
        assert torch.allclose(model(x), x[:, [0, 2]] @ model.weight[:, [0, 2]].T + model.bias)


def test_scales_and_replaces() -> None:
    model = nn.Linear(3, 2)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    region = Region.from_masks({"weight": weight > 0, "bias": torch.tensor([True, False])})
    with perturb(model, region, scale=4.0):
        assert torch.equal(model.weight, torch.where(weight > 0, weight * 4, weight))
        assert torch.equal(model.bias, bias * torch.tensor([4.0, 1.0]))
    with perturb(model, region, value=-2.5):
        assert torch.equal(model.weight, weight.where(weight <= 0, -2.5))
    with perturb(model, region, scale=0.0):
        assert torch.equal(model.weight, weight.clamp(max=0))
    assert torch.equal(model.weight, weight)


def test_puts_back_after_an_exception_and_after_writes_inside() -> None:
    model = Tied()
    before = bits_of(model)
    with suppress(KeyboardInterrupt), ablate(model, some_region(model)):
        with torch.no_grad():
            model.layer.bias.add_(1)  # all of it is in the region
        raise KeyboardInterrupt
    assert_same_bits(model, before)


def test_nests() -> None:
    model = Tied()
    before = bits_of(model)
    outer, inner = some_region(model), Region.tensors(model, ["*weight"])
    with ablate(model, outer):
        middle = bits_of(model)
        with perturb(model, inner, value=3.0), suppress(ValueError):
            assert bool((model.embed.weight == 3).all())
            raise ValueError
        assert_same_bits(model, middle)
    assert_same_bits(model, before)


def test_a_tied_weight_named_twice_is_scaled_once() -> None:
    model = Tied()
    weight = model.embed.weight.detach().clone()
    region = Region.rows(model, {"embed.weight": [0, 1], "head.weight": [1, 2]})
    with perturb(model, region, scale=2.0):
        assert torch.equal(model.head.weight[:3], weight[:3] * 2)
        assert torch.equal(model.head.weight[3:], weight[3:])
    assert torch.equal(model.embed.weight, weight)


def test_refuses_before_anything_changes() -> None:
    model = Tied()
    before = bits_of(model)
    fits, other = some_region(model), Region.from_masks({"layer.weight": torch.ones(2, 2).bool()})
    for arguments in ({}, {"scale": 2.0, "value": 0.0}):
        with (
            pytest.raises(UserError, match="one of scale, value and reinitialize"),
            perturb(model, fits, **arguments),
        ):
            pass
    with pytest.raises(UserError, match=r"layer.weight"), ablate(model, other):
        pass
    with pytest.raises(UserError, match="no parameter"), ablate(nn.Linear(2, 2), fits):
        pass
    assert_same_bits(model, before)


def test_a_failure_half_way_in_is_undone(monkeypatch) -> None:
    model = Tied()
    before, region = bits_of(model), some_region(model)
    targets = region.resolve(model)
    last = replace(targets[-1], name="missing", parameter=torch.ones(2))  # of another shape
    monkeypatch.setattr(Region, "resolve", lambda *_: [*targets, last])
    with pytest.raises(UserError), ablate(model, region):
        pass
    assert_same_bits(model, before)


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
