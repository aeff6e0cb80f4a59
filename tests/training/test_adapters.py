"""Low-rank adapters: where they sit, what is trained, and the plain model that they become."""

import math
import sys

import pytest
import torch
from decoders import tiny_gpt2, tiny_mixtral
from torch import nn
from transformers import AutoModelForCausalLM

from freezetrain.errors import UserError
from freezetrain.recipe.optimization import Engine, Optimization
from freezetrain.recipe.sources import ModelSource
from freezetrain.training.adapters import add_adapters, merged
from freezetrain.training.export import export
from freezetrain.training.recipe import Lora, TrainRecipe
from freezetrain.training.sharded import loader

IDS = torch.arange(2, 26).view(2, 12)


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def moved(model, seed=1):
    """Give the adapters values as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("make", ["llama", "gpt2", "mixtral"])
def test_merged_is_the_same_model_without_adapters(make, make_model, tokenizer, tmp_path):
    made = {"llama": make_model, "gpt2": tiny_gpt2, "mixtral": tiny_mixtral}[make]
    model, base = made(), made()
    add_adapters(model, Lora(3), seed=0)
    assert torch.equal(model(IDS).logits, base(IDS).logits), "B is zero at first"
    moved(model)
    with torch.no_grad():
        expected = model(IDS).logits
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with merged(model):
            torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-5)
            assert model.state_dict().keys() == base.state_dict().keys()
            export(model, tokenizer, tmp_path / "out")
        assert torch.equal(model(IDS).logits, expected)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not list((tmp_path / "out").glob("adapter*"))
    plain, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    torch.testing.assert_close(plain(IDS).logits, expected, rtol=1e-4, atol=1e-5)
    linear = [n for n, m in base.named_modules() if isinstance(m, nn.Linear) or "Conv1D" in str(m)]
    for name, value in base.named_parameters():
        inside = any(name == f"{of}.weight" for of in linear) and "head" not in name
        assert torch.equal(plain.get_parameter(name), value) != inside, name


def test_targets_by_the_end_of_their_name(make_model):
    model = make_model()
    add_adapters(model, Lora(2, targets=["mlp.up_proj", "o_proj"]), seed=0)
    names = {name.split(".lora_")[0].removeprefix("model.layers.") for name in trained(model)}
    assert names == {
        f"{n}.{layer}" for n in (0, 1) for layer in ("mlp.up_proj", "self_attn.o_proj")
    }
    for target, near in (("q_porj", "q_proj"), ("lm_head", None), ("roj", None)):
        with pytest.raises(UserError, match=f"lora.targets has '{target}'.*{near or ''}"):
            add_adapters(make_model(), Lora(targets=["o_proj", target]), seed=0)


def test_is_drawn_by_seed_alone(make_model):
    by_seed = []
    for noise, seed in enumerate((5, 5, 6)):
        model = make_model()
        torch.rand(noise)
        state = torch.get_rng_state()
        add_adapters(model, Lora(4), seed)
        assert torch.equal(torch.get_rng_state(), state)
        by_seed.append(trained(model))
    assert all(torch.equal(value, by_seed[1][name]) for name, value in by_seed[0].items())
    drawn = {name: value for name, value in by_seed[0].items() if "lora_A" in name}
    assert not any(torch.equal(value, by_seed[2][name]) for name, value in drawn.items())
    for value in drawn.values():  # uniform up to 1 / sqrt(inputs), as nn.Linear
        bound = 1 / math.sqrt(value.shape[1])
        assert 0.8 * bound < value.abs().max() <= bound


def test_dropout_acts_in_training_alone(make_model):
    model = make_model()
    add_adapters(model, Lora(4, dropout=0.5), seed=0)
    moved(model).train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
    model.eval()
    assert torch.equal(model(IDS).logits, model(IDS).logits)


def test_checkpointing_of_blocks_changes_no_gradient(model_folder):
    gradients = []
    for checkpointing in (False, True):
        recipe = TrainRecipe(
            ModelSource(str(model_folder)),
            lora=Lora(4),
            engine=Engine(gradient_checkpointing=checkpointing),
            optimization=Optimization(precision="32-true"),
        )
        model = moved(loader(recipe, "one")).train()
        model(IDS, labels=IDS).loss.backward()
        gradients.append({name: p.grad for name, p in trained(model).items()})
    assert len(gradients[0]) == 2 * 14
    for name, value in gradients[0].items():
        assert value.abs().max() > 0
        torch.testing.assert_close(gradients[1][name], value, msg=name)


def test_16_bit_weights_are_rounded_once(make_model):
    model = make_model().bfloat16()
    base = {name: p.clone() for name, p in model.named_parameters()}
    add_adapters(model, Lora(2, alpha=3.0), seed=0)
    moved(model)
    pairs = {name: p.detach().float() for name, p in trained(model).items()}
    with merged(model):
        for name in ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"):
            a, b = (pairs[f"{name}.lora_{part}.default.weight"] for part in "AB")
            expected = (base[f"{name}.weight"].float() + 1.5 * b @ a).bfloat16()
            assert torch.equal(model.get_parameter(f"{name}.weight"), expected)


def test_says_how_to_get_peft(make_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'freezetrain\[lora\]', or leave lora out"):
        add_adapters(make_model(), Lora(), seed=0)
