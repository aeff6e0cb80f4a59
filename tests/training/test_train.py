"""What `freezetrain train` makes of a region: its facts for the report, and the freeze."""

import pytest
import torch

from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.sources import ModelSource
from freezetrain.regions import Base, Region
from freezetrain.training.parts import region_freeze
from freezetrain.training.recipe import Freezing, TrainRecipe
from freezetrain.training.train import region_facts


def test_facts_follow_from_the_masks(model):
    masks = {}
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if name.endswith(("q_proj.weight", "lm_head.weight", "1.mlp.up_proj.weight")):
            masks[name] = torch.rand(weight.shape) < 0.2
    made = {"rule": "drawn", "seed": 0}
    region = Region.from_masks(masks, made=made)
    facts = region_facts(region, model, file="a.safetensors", frozen="frozen")
    entries = sum(int(mask.sum()) for mask in masks.values())
    assert facts.entries == entries
    assert facts.share == entries / sum(weight.numel() for weight in model.parameters())
    share = {name: mask.double().mean().item() for name, mask in masks.items()}
    assert facts.coverage == {
        "self_attn.q_proj": {
            str(layer): share[f"model.layers.{layer}.self_attn.q_proj.weight"] for layer in (0, 1)
        },
        "mlp.up_proj": {"0": 0.0, "1": share["model.layers.1.mlp.up_proj.weight"]},
    }
    assert facts.elsewhere == {"lm_head.weight": share["lm_head.weight"]}
    assert (facts.made, facts.file, facts.frozen) == (made, "a.safetensors", "frozen")
    assert facts.base is None


def test_the_base_is_named(model):
    base = Base("models/base", None, "0")
    region = Region.random(model, 0.1, seed=0, base=base)
    assert region_facts(region, model, file="x", frozen="y").base == "models/base"


@pytest.mark.parametrize(
    ("stored", "freeze", "reads"),
    [
        (torch.float32, Freezing(), True),
        (torch.bfloat16, Freezing(), False),  # exact already; fused experts cannot be read
        (torch.float32, Freezing(first_step=2), False),
        (torch.float32, Freezing(clamp=0.0), False),
    ],
)
def test_the_base_is_read_again_only_where_masters_would_start_rounded(
    tmp_path, make_model, monkeypatch, stored, freeze, reads
):
    model = make_model().to(stored)
    model.save_pretrained(tmp_path)
    given = []
    monkeypatch.setattr(
        "freezetrain.training.parts.local_folder", lambda s: given.append(s.path) or "."
    )
    recipe = TrainRecipe(
        ModelSource(str(tmp_path)),
        region="in memory",
        freeze=freeze,
        optimization=Optimization(precision="bf16-mixed", max_steps=4),
    )
    region = Region.random(model, 0.2, seed=0)
    assert region_freeze(recipe, region, "zero-2").region is region
    assert given == [str(tmp_path)] * reads
    assert not region_freeze(recipe, region, "fsdp2").handle
    assert given == [str(tmp_path)] * reads
