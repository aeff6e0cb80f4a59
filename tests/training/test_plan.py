"""What is refused before texts are read: types that round frozen entries, scores of others."""

import json
import shutil

import pytest
import torch
from made_rehearsal import rehearse

from freezetrain.data.tokens import tokenizer_digest
from freezetrain.errors import UserError
from freezetrain.models import stored_dtype
from freezetrain.ranks import Launch
from freezetrain.recipe.optimization import Engine, Optimization
from freezetrain.recipe.sources import ModelSource, TextSource
from freezetrain.regions import Base, Entries, Region, fingerprint
from freezetrain.regions.base import base_of
from freezetrain.rehearsal.pieces import piece_file
from freezetrain.scoring import Scores
from freezetrain.training.dry_run import run as dry_run
from freezetrain.training.plan import make_plan, refuse_types
from freezetrain.training.recipe import Freezing, Penalty, Pull, Rehearse, TrainRecipe, Watch
from freezetrain.training.train import run


def save(model, folder, dtype, says_type=True):
    """A model folder whose config.json says its type if ``says_type``; GPT-2's does not."""
    model.to(dtype).save_pretrained(folder, max_shard_size="20KB")
    if not says_type:
        config = json.loads((folder / "config.json").read_text())
        del config["dtype"]
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_files_say_the_type_where_the_configuration_does_not(tmp_path, make_model, dtype):
    assert stored_dtype(ModelSource(save(make_model(), tmp_path, dtype, says_type=False))) == dtype


def test_files_of_several_types_are_of_the_one_that_holds_all(tmp_path, make_model):
    model = make_model().bfloat16()
    model.model.norm.to(torch.float16)
    path = save(model, tmp_path, None, says_type=False)
    assert stored_dtype(ModelSource(path)) == torch.float32


def test_names_of_watched_languages_are_looked_at_before_texts_are_read(model_folder, tmp_path):
    for folder, name in (("trained", "zh"), ("watched", "worst"), ("watched", "zh")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.jsonl").write_text("no JSON")
    recipe = TrainRecipe(
        ModelSource(str(model_folder)),
        TextSource(folder=str(tmp_path / "trained")),
        watch=Watch(TextSource(folder=str(tmp_path / "watched"))),
        optimization=Optimization(sequence_length=16),
        logger=["none"],
    )
    with pytest.raises(UserError, match="a language is called 'worst', which is the name of a fi"):
        run(recipe, tmp_path / "out")
    recipe.watch.off = True
    with pytest.raises(UserError, match=r"trained/zh\.jsonl line 1 is no JSON"):
        run(recipe, tmp_path / "out")


def test_groups_of_devices_must_come_out_even(model_folder):
    engine = Engine(kind="fsdp2", devices=4, replicas=3)
    recipe = TrainRecipe(ModelSource(str(model_folder)), engine=engine)
    with pytest.raises(UserError, match=r"engine\.replicas must be a number that divides the 4"):
        make_plan(recipe, Launch())


@pytest.mark.parametrize(
    "more",
    [
        {"export_dtype": "bfloat16"},
        {"optimization": Optimization(precision="bf16-true")},
    ],
)
@pytest.mark.parametrize("says_type", [True, False])
def test_rounding_is_refused_also_where_the_configuration_has_no_type(
    tmp_path, make_model, more, says_type
):
    path = save(make_model(), tmp_path / "32", torch.float32, says_type)
    with pytest.raises(UserError, match="would round the entries that are to be frozen"):
        refuse_types(TrainRecipe(ModelSource(path), region="r", **more))
    refuse_types(TrainRecipe(ModelSource(path), region="r", freeze=Freezing(clamp=0.0), **more))
    refuse_types(TrainRecipe(ModelSource(path), **more))
    path = save(make_model(), tmp_path / "16", torch.bfloat16, says_type)
    refuse_types(TrainRecipe(ModelSource(path), region="r", **more))


def test_float16_is_refused_also_as_stored(tmp_path, make_model):
    path = save(make_model(), tmp_path, torch.float16)
    with pytest.raises(UserError, match="stored in float16, which overflows"):
        refuse_types(TrainRecipe(ModelSource(path, dtype="stored")))
    refuse_types(TrainRecipe(ModelSource(path)))


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
        make_plan(recipe_of(model_folder, penalty=Penalty(1.0, folder)), Launch())


def test_a_folder_without_scores_is_refused(model_folder, tmp_path):
    with pytest.raises(UserError, match="expected a folder of score files"):
        make_plan(recipe_of(model_folder, penalty=Penalty(1.0, str(tmp_path))), Launch())


def test_scores_of_another_model_are_refused(model_folder, model, make_model, tmp_path):
    base = Base("another", None, fingerprint(make_model(seed=1)))
    folder = saved(tmp_path, model, base=base)
    recipe = recipe_of(model_folder, penalty=Penalty(1.0, folder))
    recipe.texts, recipe.languages, recipe.watch.off = TextSource(), ["zh"], True
    with pytest.raises(UserError, match="scores were made for another model, another with the"):
        run(recipe, tmp_path / "run", table=False, progress=False)


@pytest.mark.parametrize("what", ["region", "scores"])
def test_a_pull_by_what_was_made_for_another_model_is_refused_first(
    model_folder, model, make_model, tmp_path, what
):
    def pull_of(model):
        base = base_of(model)
        folder = tmp_path / base.fingerprint
        folder.mkdir()
        if what == "scores":
            return Pull(1.0, fisher=saved(folder, model, base=base))
        region = Region({"model.norm.weight": Entries.whole(model.model.norm.weight.shape)}, base)
        return Pull(1.0, {str(region.save(folder / "r.safetensors")): 2.0})

    make_plan(recipe_of(model_folder, pull=pull_of(model)), Launch())
    recipe = recipe_of(model_folder, pull=pull_of(make_model(seed=1)))
    with pytest.raises(UserError, match=f"the {what}.* made for another model.*make it for"):
        make_plan(recipe, Launch())


def test_a_region_that_is_not_there_is_looked_for_among_its_neighbours(
    model_folder, model, tmp_path
):
    Region.random(model, 0.1, seed=0).save(tmp_path / "core.safetensors")
    recipe = recipe_of(model_folder, pull=Pull(1.0, {str(tmp_path / "cre.safetensors"): 2.0}))
    with pytest.raises(UserError, match=r"no region at .*did you mean 'core\.safetensors'"):
        make_plan(recipe, Launch())


def changed(file):
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def test_a_rehearsal_that_does_not_fit_is_refused_first(model_folder, make_model, tmp_path):
    """Before texts are read and weights are loaded, in a dry run too; nothing is written."""
    good = rehearse(tmp_path / "good", model_folder, [4, 9])

    def refused(folder, model_folder=model_folder):
        recipe = recipe_of(model_folder, rehearse=Rehearse(str(folder)))
        recipe.watch.off = True
        for start in (
            lambda: run(recipe, tmp_path / "run", table=False, progress=False),
            lambda: dry_run(recipe, Launch(), tmp_path / "run"),
        ):
            with pytest.raises(UserError) as error:
                start()
            assert not (tmp_path / "run").exists()
        return str(error.value)

    assert "holds no rehearsal; give a folder that" in refused(tmp_path / "nothing")
    damaged, lacking = tmp_path / "damaged", tmp_path / "lacking"
    for folder in (damaged, lacking):
        shutil.copytree(good, folder)
    changed(piece_file(damaged, 1))
    assert "00001.safetensors is damaged" in refused(damaged)
    piece_file(lacking, 0).unlink()
    assert "00000.safetensors is missing: the rehearsal has 2" in refused(lacking)
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    make_model(seed=1).save_pretrained(other)
    assert "was drawn by another model, " in refused(good, other)
    assert f"{other} with" in refused(good, other)


def test_a_rehearsal_of_another_tokenizer_is_refused(model_folder, tokenizer, tmp_path):
    folder = rehearse(tmp_path / "drawn", model_folder, [4, 9])
    recipe = recipe_of(model_folder, rehearse=Rehearse(str(folder)))
    assert make_plan(recipe, Launch(), tokenizer_digest(tokenizer)).rehearsal is not None
    with pytest.raises(UserError, match="was made with another tokenizer than that of"):
        make_plan(recipe, Launch(), "another")


def test_a_dry_run_without_weights_takes_a_rehearsal_as_it_is(model_folder, tmp_path):
    folder = rehearse(tmp_path / "drawn", model_folder, [4, 9])
    (tmp_path / "bare").mkdir()
    shutil.copy(model_folder / "config.json", tmp_path / "bare")
    recipe = recipe_of(tmp_path / "bare", rehearse=Rehearse(str(folder)))
    assert make_plan(recipe, Launch()).rehearsal is not None
    config = json.loads((tmp_path / "bare" / "config.json").read_text())
    (tmp_path / "bare" / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    with pytest.raises(UserError, match=r"is over 400 tokens and the model .* has 300"):
        make_plan(recipe, Launch())
