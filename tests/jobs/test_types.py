"""Types that the weights of a run are held in: what would round frozen entries is refused."""

import json

import pytest
import torch

from freezetrain.errors import UserError
from freezetrain.models import stored_dtype
from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.sources import ModelSource
from freezetrain.training.recipe import Freezing, TrainRecipe
from freezetrain.training.train import refuse_types


def save(model, folder, dtype, told=True):
    """A model folder whose config.json says its type if ``told`` (GPT-2's on the hub does not)."""
    model.to(dtype).save_pretrained(folder, max_shard_size="20KB")
    if not told:
        config = json.loads((folder / "config.json").read_text())
        del config["dtype"]
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_files_say_the_type_where_the_configuration_does_not(tmp_path, make_model, dtype):
    assert stored_dtype(ModelSource(save(make_model(), tmp_path, dtype, told=False))) == dtype


def test_files_of_several_types_are_of_the_one_that_holds_all(tmp_path, make_model):
    model = make_model().bfloat16()
    model.model.norm.to(torch.float16)
    path = save(model, tmp_path, None, told=False)
    assert stored_dtype(ModelSource(path)) == torch.float32


@pytest.mark.parametrize(
    "more",
    [
        {"export_dtype": "bfloat16"},
        {"optimization": Optimization(precision="bf16-true")},
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_rounding_is_refused_also_where_the_configuration_has_no_type(
    tmp_path, make_model, more, told
):
    path = save(make_model(), tmp_path / "32", torch.float32, told)
    with pytest.raises(UserError, match="would round the entries that are to be frozen"):
        refuse_types(TrainRecipe(ModelSource(path), region="r", **more))
    refuse_types(TrainRecipe(ModelSource(path), region="r", freeze=Freezing(clamp=0.0), **more))
    refuse_types(TrainRecipe(ModelSource(path), **more))
    path = save(make_model(), tmp_path / "16", torch.bfloat16, told)
    refuse_types(TrainRecipe(ModelSource(path), region="r", **more))


def test_float16_is_refused_also_as_stored(tmp_path, make_model):
    path = save(make_model(), tmp_path, torch.float16)
    with pytest.raises(UserError, match="stored in float16, which overflows"):
        refuse_types(TrainRecipe(ModelSource(path, dtype="stored")))
    refuse_types(TrainRecipe(ModelSource(path)))
