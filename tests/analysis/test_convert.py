"""To the layout of the paper's code and back, through `freezetrain convert`'s job."""

import pytest
import torch

from freezetrain.analysis.convert import run
from freezetrain.analysis.recipe import ConvertRecipe
from freezetrain.errors import UserError
from freezetrain.recipe.sources import ModelSource
from freezetrain.regions import Region, block_parameters
from freezetrain.regions.base import base_of
from freezetrain.scoring import Scores, compute_scores, select


@pytest.fixture
def convert(tmp_path):
    """Run the job; results, and the path of what it left."""

    def convert(source, to, out, **more):
        (tmp_path / out).mkdir()
        results = run(ConvertRecipe(str(source), to, **more), tmp_path / out).results
        return results["what"], tmp_path / out / results["file"]

    return convert


def save_all(folder, tensors):
    folder.mkdir()
    for name, tensor in tensors.items():
        torch.save(tensor, folder / f"{name}.pt")
    return folder


def test_a_region_goes_and_comes_back(convert, model, tmp_path):
    region = Region.random(model, 0.1, seed=0, base=base_of(model))
    region.save(tmp_path / "r.safetensors")
    what, masks = convert(tmp_path / "r.safetensors", "paper", "a")
    assert (what, masks.name) == ("region", "masks")
    for name, entries in region.items():
        assert torch.equal(torch.load(masks / f"{name}.pt", weights_only=True), entries.mask())
    what, back = convert(masks, "freezetrain", "b")
    assert (what, back.name) == ("region", "region.safetensors")
    assert Region.load(back) == region


def test_scores_go_and_come_back(convert, model, model_folder, tmp_path):
    scores = compute_scores(model, [torch.arange(20)[None]], language="zh")
    scores.save(tmp_path / "zh.safetensors")
    what, folder = convert(tmp_path / "zh.safetensors", "paper", "a")
    assert (what, folder.name) == ("scores", "scores")
    assert {path.name for path in folder.iterdir()} == {f"{name}.pt" for name in scores}
    source = ModelSource(str(model_folder))
    what, back = convert(folder, "freezetrain", "b", language="zh", model=source)
    assert (what, back.name) == ("scores", "zh.safetensors")
    loaded = Scores.load(back)
    assert list(loaded) == list(scores)
    assert all(torch.equal(loaded[name], scores[name]) for name in scores)
    assert loaded.base.fingerprint == scores.base.fingerprint
    for key in ("norms", "transposed", "method", "language"):
        assert loaded.made[key] == scores.made[key]
    assert select(loaded, 0.1, unit="row") == select(scores, 0.1, unit="row")


def test_names_without_their_beginning_become_the_models_own(
    convert, model, model_folder, tmp_path
):
    signed = {
        name.removeprefix("model."): torch.randn(parameter.shape)
        for name, parameter in block_parameters(model, norms=True).items()
    }
    source = ModelSource(str(model_folder))
    masks = save_all(tmp_path / "m", {name: value > 0.5 for name, value in signed.items()})
    _, path = convert(masks, "freezetrain", "region", model=source)
    region = Region.load(path, model)  # names, shapes and base are the model's
    for name, value in signed.items():
        assert torch.equal(region[f"model.{name}"].mask(), value > 0.5)
    _, path = convert(save_all(tmp_path / "s", signed), "freezetrain", "scores", model=source)
    scores = Scores.load(path)
    assert scores.shapes == {f"model.{name}": tuple(value.shape) for name, value in signed.items()}
    assert all(torch.equal(scores[f"model.{name}"], value.abs()) for name, value in signed.items())
    assert scores.made["norms"] == [
        f"model.layers.{layer}.{which}_layernorm.weight"
        for layer in (0, 1)
        for which in ("input", "post_attention")
    ]
    # Without the model, they are as they were.
    _, path = convert(tmp_path / "s", "freezetrain", "plain")
    assert set(Scores.load(path)) == set(signed)
    assert Scores.load(path).base is None


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["layers.0.mlp.up_projj.weight"], "called 'layers.0.mlp.up_projj.weight' or ends so, got"),
        (["mlp.up_proj.weight"], r"got 2 \('model.layers.0.mlp.up_proj.weight', ...\)"),
        (["layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"],
         "2 files are of the parameter 'model.layers.0.mlp.up_proj.weight'"),
        (["layers.0.mlp.down_proj.weight"], r"the model's shape \[16, 24\], got \[24, 16\]"),
    ],
)  # fmt: skip
def test_what_is_not_the_models_is_refused(convert, model_folder, tmp_path, names, complaint):
    masks = save_all(tmp_path / "m", {name: torch.ones(24, 16) > 0 for name in names})
    with pytest.raises(UserError, match=complaint):
        convert(masks, "freezetrain", "out", model=ModelSource(str(model_folder)))


def test_what_does_not_belong_together_is_refused(convert, tmp_path):
    masks = save_all(tmp_path / "m", {"layers.0.w": torch.ones(3) > 0})
    with pytest.raises(UserError, match="expected scores for language 'zh', got masks in"):
        convert(masks, "freezetrain", "a", language="zh")
    with pytest.raises(UserError, match="language must be left out"):
        ConvertRecipe("x", "paper", language="zh")
    with pytest.raises(UserError, match="model must be left out"):
        ConvertRecipe("x", "paper", model=ModelSource("y"))
    with pytest.raises(UserError, match="there is nothing"):
        convert(tmp_path / "nothing", "paper", "b")
    with pytest.raises(UserError, match="not a file of freezetrain"):
        convert(masks, "paper", "c")
    with pytest.raises(UserError, match="found none in"):
        convert(tmp_path / "nothing", "freezetrain", "d")
