"""What `freezetrain train` reads scores of, for a penalty, and refuses before it reads any text."""

import pytest
import torch

from freezetrain.errors import UserError
from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.sources import ModelSource, TextSource
from freezetrain.regions import Base, fingerprint
from freezetrain.scoring import Scores
from freezetrain.training.recipe import Penalty, TrainRecipe
from freezetrain.training.train import average_of, penalty_of, run


def recipe_of(model_folder, **more):
    settings = Optimization(max_steps=1, sequence_length=16, precision="32-true")
    nowhere = TextSource(folder="there is no such folder")
    return TrainRecipe(ModelSource(str(model_folder)), optimization=settings, texts=nowhere, **more)


def saved(folder, model, method="fisher", base=None, **more):
    tensors = {n: torch.rand(p.shape) for n, p in model.named_parameters() if "layers" in n}
    Scores({**tensors, **more}, base, {"method": method, "batches": 2}).save(
        folder / "en.safetensors"
    )
    return str(folder)


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        ({"method": "taylor"}, "of the method fisher, and those in .* are of taylor"),
        ({"sideways": torch.rand(2)}, "name parameters that LlamaForCausalLM lacks"),
        ({"lm_head.weight": torch.rand(2)}, r"'lm_head.weight' of shape \[2\], the model"),
    ],
)
def test_scores_that_do_not_fit_are_refused_first(model_folder, model, tmp_path, made, complaint):
    folder = saved(tmp_path, model, **made)
    with pytest.raises(UserError, match=complaint):
        run(recipe_of(model_folder, penalty=Penalty(1.0, folder)), tmp_path / "run")


def test_a_folder_without_scores_is_refused(model_folder, tmp_path):
    with pytest.raises(UserError, match="expected a folder of score files"):
        run(recipe_of(model_folder, penalty=Penalty(1.0, str(tmp_path))), tmp_path / "run")


def test_scores_of_another_model_are_refused(model_folder, model, make_model, tmp_path):
    base = Base("another", None, fingerprint(make_model(seed=1)))
    folder = saved(tmp_path, model, base=base)
    recipe = recipe_of(model_folder, penalty=Penalty(1.0, folder))
    recipe.texts, recipe.languages, recipe.watch.off = TextSource(), ["zh"], True
    with pytest.raises(UserError, match="scores were made for another model, another with the"):
        run(recipe, tmp_path / "run", table=False, progress=False)


def test_nothing_where_nothing_is_told(model_folder, model):
    assert penalty_of(recipe_of(model_folder), model) is None
    assert average_of(recipe_of(model_folder)) is None
