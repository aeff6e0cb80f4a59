"""What `freezetrain train` freezes a region with."""

import pytest
import torch

from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.sources import ModelSource
from freezetrain.regions import Region
from freezetrain.training.recipe import Freezing, TrainRecipe
from freezetrain.training.train import region_freeze


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
        "freezetrain.training.train.local_folder", lambda s: given.append(s.path) or "."
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
