"""The recipe of a comparison: how its runs, scores and regions are made, and what it refuses."""

from pathlib import Path

import pytest
import torch

from freezetrain.compare.recipe import CompareRecipe
from freezetrain.errors import UserError
from freezetrain.recipe.mapping import change
from freezetrain.recipe.optimization import Engine, Optimization
from freezetrain.recipe.sources import ModelSource, TextSource
from freezetrain.regions import Base
from freezetrain.rehearsal import top_targets
from freezetrain.rehearsal.pieces import Made, Piece, write_piece
from freezetrain.training.recipe import Rehearse, Replay, TrainRecipe, Watch

TEXTS = TextSource("texts", test_one_in=4)


def recipe(**more) -> CompareRecipe:
    train = TrainRecipe(
        ModelSource("base"),
        texts=TEXTS,
        languages=["zh"],
        optimization=Optimization(max_steps=7),
        watch=Watch(TEXTS, ["zh", "en", "es"]),
    )
    shared = CompareRecipe(train, learning_rates=[1e-4, 1e-3])
    return change(shared, more, "recipe")


def test_a_variant_is_the_recipe_with_its_changes():
    replay = {"texts": {"folder": "texts", "test_one_in": 4}, "languages": ["en"], "share": 0.2}
    compared = recipe(
        variants={"plain": {}, "core": {"region": "core", "changes": {"replay": replay}}},
        regions={"core": {"kind": "core"}},
    )
    one = compared.training("core", 1e-3, 5, Path("there"))
    assert one.region == "there/regions/core.safetensors"
    assert one.replay == Replay(TEXTS, ["en"], share=0.2)
    assert (one.optimization.learning_rate, one.optimization.seed) == (1e-3, 5)
    assert one.optimization.max_steps == 7
    assert one.watch.off
    assert one.engine == Engine(devices=1)
    plain = compared.training("plain", 1e-4, 5)
    assert plain.region is plain.replay is None
    assert compared.reads_old("core")
    assert not compared.reads_old("plain")


def test_rates_and_seeds_of_a_variant_go_before_those_of_all():
    compared = recipe(variants={"plain": {}, "x": {"learning_rates": [1.0], "seeds": [2]}})
    assert (compared.rates_of("plain"), compared.seeds_of("plain")) == ([1e-4, 1e-3], [0, 1, 2])
    assert (compared.rates_of("x"), compared.seeds_of("x")) == ([1.0], [2])


def test_regions_are_told_what_all_runs_share():
    compared = recipe(
        regions={
            "core": {"kind": "core", "scores": "wanda"},
            "like": {"kind": "random", "like": "core"},
            "any": {"kind": "random", "unit": "column", "ratio": 0.5},
            "rare": {"kind": "vocabulary"},
            "apart": {"kind": "expression", "expression": "en - zh", "scores": "taylor"},
        },
        scoring={"methods": ["taylor", "wanda"], "languages": ["en", "zh"]},
    )
    made = {name: compared.selection(name, Path("regions"), "scores") for name in compared.regions}
    assert made["core"].scores == "scores/wanda"
    assert made["core"].languages == ["en"]  # the target's scores are not what is to be kept
    assert made["apart"].languages == []
    assert made["like"].like == "regions/core.safetensors"
    assert made["any"].model == ModelSource("base")
    assert (made["rare"].language, made["rare"].texts) == ("zh", TEXTS)
    scoring = compared.scoring_recipe()
    assert scoring.languages == ["en", "zh"]
    assert (scoring.model, scoring.texts) == (ModelSource("base"), TEXTS)
    assert recipe(regions={"core": {}}).scoring_recipe().languages == ["en", "es"]


def test_a_random_region_like_one_by_scores_reads_no_old_text():
    compared = recipe(
        variants={"plain": {}, "random": {"region": "like"}},
        regions={"core": {"kind": "core"}, "like": {"kind": "random", "like": "core"}},
    )
    assert not compared.reads_old("random")
    assert compared.needs_scores


def test_fisher_names_the_scores_that_the_comparison_makes():
    penalty = {"strength": 1.0, "fisher": "fisher"}
    ewc = {"plain": {}, "EWC": {"changes": {"penalty": penalty}}}
    compared = recipe(variants=ewc, scoring={"methods": ["taylor", "fisher"]})
    penalty = compared.training("EWC", 1e-4, 0, Path("there")).penalty
    assert (penalty.fisher, penalty.languages) == (
        "there/scores/fisher",
        None,
    )  # the target is not scored
    scoring = {"methods": ["fisher"], "languages": ["en", "zh", "es"]}
    compared = recipe(variants=ewc, scoring=scoring)
    assert compared.training("EWC", 1e-4, 0).penalty.languages == ["en", "es"]
    assert compared.needs_scores
    assert compared.reads_old("EWC")


def test_a_pull_names_regions_and_scores_of_the_comparison():
    pulled = {"strength": 5.0, "regions": {"core": 100.0, "core | rare": 20.0}}
    compared = recipe(
        variants={
            "plain": {},
            "pull": {"changes": {"pull": {"strength": 5.0}}},
            "by region": {"changes": {"pull": pulled}},
            "EWC": {"changes": {"pull": {"strength": 1.0, "fisher": "fisher"}}},
        },
        regions={"core": {"kind": "core"}, "rare": {"kind": "vocabulary"}},
        scoring={"methods": ["taylor", "fisher"], "languages": ["en", "zh"]},
    )
    regions = compared.training("by region", 1e-3, 0, Path("there")).pull.regions
    combined = str(Path("there") / compared.region_file("core | rare"))
    assert regions == {"there/regions/core.safetensors": 100.0, combined: 20.0}
    ewc = compared.training("EWC", 1e-3, 0, Path("there")).pull
    assert (ewc.fisher, ewc.languages) == ("there/scores/fisher", ["en"])
    assert [name for name in compared.variants if compared.reads_old(name)] == ["by region", "EWC"]
    with pytest.raises(UserError, match=r"'cre'.*did you mean 'core'"):
        recipe(
            variants={
                "plain": {},
                "x": {"changes": {"pull": {"strength": 1, "regions": {"cre": 2}}}},
            },
            regions={"core": {"kind": "core"}},
        )


def test_a_rehearsal_is_drawn_once_for_the_variants_that_name_it():
    old = {"folder": "texts", "test_one_in": 4}
    names = ("own", "asked", "old")
    rehearsed = {name: {"changes": {"rehearse": {"folder": name}}} for name in names}
    compared = recipe(
        variants={"plain": {}, **rehearsed},
        rehearsals={
            "own": {"sequences": 100, "k": 16},
            "asked": {"languages": ["en"], "prompts": old, "sequence_length": 64},
            "old": {"texts": old, "languages": ["en", "es"]},
        },
    )
    own = compared.rehearsal("own")
    assert (own.model, own.sequences, own.k) == (ModelSource("base"), 100, 16)
    assert own.sequence_length == compared.train.optimization.sequence_length
    assert compared.rehearsal("asked").sequence_length == 64
    training = compared.training("own", 1e-3, 0, Path("there"))
    assert training.rehearse == Rehearse("there/rehearsals/own")
    assert [compared.old_share(name) for name in rehearsed] == [0, 0, 0.05]
    assert [compared.reads_old(name) for name in rehearsed] == [False, True, False]


@pytest.mark.parametrize(
    ("how", "share", "reads"),
    [
        ({"drawn": True}, 0, False),
        ({"drawn": True, "own_prompts": True}, 0, True),
        ({"drawn": False}, 0.2, False),
    ],
)
def test_a_rehearsal_of_the_users_tells_whether_it_is_old_text(tmp_path, how, share, reads):
    base = Base("base", None, "0" * 64)
    made = Made(base, "tokenizer", 9, 1, 2, ("en",), 1, how)
    one = torch.tensor([1])
    piece = Piece(one, torch.tensor([0, 1]), one * 0, one, top_targets(torch.zeros(1, 9), 1))
    write_piece(tmp_path, 0, piece, made)
    rehearse = {"changes": {"rehearse": {"folder": str(tmp_path), "share": 0.2}}}
    compared = recipe(variants={"plain": {}, "x": rehearse})
    assert compared.old_share("x") == share
    assert compared.reads_old("x") == reads


@pytest.mark.parametrize(
    ("rehearsals", "folder", "complaint"),
    [
        ({"own": {}}, "owm", "neither a folder nor one of rehearsals.*did you mean 'own'"),
        ({"own": {"k": 0}}, "own", "k must be 1 or more"),
        ({"own": {"model": "x"}}, "own", "model"),
        ({"own": {"texts": {"folder": "texts", "test_one_in": 5}}}, "own", "texts"),
        ({"a b": {}}, "a b", "a rehearsal's name must be letters"),
    ],
)
def test_a_rehearsal_that_cannot_be_made(rehearsals, folder, complaint):
    rehearse = {"changes": {"rehearse": {"folder": folder}}}
    with pytest.raises(UserError, match=complaint):
        recipe(variants={"plain": {}, "x": rehearse}, rehearsals=rehearsals)


def variants(**one):
    return {"variants": {"plain": {}, "x": one}}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"variants": {"x": {}}}, "with one called plain"),
        ({"variants": {"plain": {"region": "x"}}}, "variants.plain must be without region"),
        ({"variants": {"plain": {}, "a b": {}, "a-b": {}}}, "told apart as folders"),
        (variants(reion="x"), r"unknown field 'variants.x.reion' \(did you mean"),
        (variants(region="cre"), "expected the name of a region at character 1 of 'cre'"),
        (variants(changes={"optimization": {"seed": 1}}), "without what all variants share"),
        (variants(changes={"watch": {}}), "without what all variants share"),
        (variants(changes={"lora": {"rnk": 1}}), "unknown field 'variants.x.changes.lora.rnk'"),
        (
            variants(changes={"penalty": 0.1}),
            "changes.penalty: expected a group of fields, as {name: value}, got 0.1",
        ),
        (variants(changes={"optimization": 5}), "changes.optimization: expected a group of fields"),
        (
            variants(changes={"replay": {"texts": {"folder": "texts", "test_one_in": 9}}}),
            "variants.x: replay.texts and train.watch.texts read the same texts but split them",
        ),
        ({"regions": {"a": {}}, "scoring": {"texts": {"test_one_in": 0}}}, "scoring.texts and"),
        (
            {"regions": {"a": {}}, "scoring": {"texts": "x"}},
            "scoring.texts: expected a group of fields",
        ),
        (
            {"regions": {"a": {}}, "scoring": {"methods": "fisher"}},
            "scoring.methods: expected a list",
        ),
        ({"regions": {"a": {}}, "scoring": {"engine": {"devices": 2}}}, "run freezetrain score"),
        ({"variants": {"plain": {}, "..": {}}}, "expected a name that a file can bear"),
        (variants(learning_rates=[0.0]), "learning_rates must be numbers above 0"),
        (variants(learning_rates=[1.0, 1.0]), "one or more, each once"),
        (variants(seeds=[9]), "some of plain's"),
        ({"regions": {"a b": {}}}, "a region's name"),
        ({"regions": {"a": {"kind": "cre"}}}, "regions.a.kind: expected one of 'core'"),
        ({"regions": {"a": {"kind": "random", "like": "b"}}}, "the name of an earlier region"),
        ({"regions": {"a": {"kind": "file"}}}, "kind: file and a path"),
        ({"regions": {"a": {"scores": "wnda"}}}, "the methods of scoring are taylor"),
        ({"regions": {"a": {}}, "scoring": {"sequnces": 1}}, "unknown field 'scoring.sequnces'"),
        ({"scores": "there", "scoring": {"batch": 1}}, "left out where scores are given"),
        ({"gain": -1.0}, "gain must be a number above 0"),
        ({"runs_at_once": 0}, "runs_at_once must be 1 or more"),
    ],
)
def test_what_cannot_be_compared_is_refused(more, said):
    with pytest.raises(UserError, match=said):
        recipe(**more)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"languages": ["zh", "en"]}, "train.languages must be one, the target"),
        ({"region": "x"}, "train.region must be left out"),
        ({"from_scratch": True}, "train.from_scratch must be left out"),
        ({"engine": Engine(devices=2)}, "train.engine.devices must be 1 or left out"),
        ({"watch": Watch(TEXTS, off=True)}, "train.watch.off must be false"),
        ({"watch": Watch(TEXTS, ["en", "es"])}, "with the target, zh"),
        ({"watch": Watch(TEXTS, ["zh"])}, "two or more"),
    ],
)
def test_what_all_runs_share_is_checked(change, said):
    shared = {"model": ModelSource("base"), "texts": TEXTS, "languages": ["zh"]}
    with pytest.raises(UserError, match=said):
        CompareRecipe(TrainRecipe(**{**shared, **change}))
