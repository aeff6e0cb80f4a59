"""Does `freezetrain compare` find what was planted: the weights in which two languages live?"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from planted import (
    LENGTH,
    NEW,
    OLD,
    halves,
    known_region,
    planted_model,
    planted_tokenizer,
    sentences,
    token_ids,
    write_texts,
)

from freezetrain.compare import compare
from freezetrain.compare.recipe import CompareRecipe, Variant
from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.sources import ModelSource, TextSource
from freezetrain.regions import Region, block_parameters
from freezetrain.training.recipe import TrainRecipe, Watch

pytestmark = pytest.mark.exhaustive  # 24 runs


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> SimpleNamespace:
    """The base, its known region, and their files."""
    folder = tmp_path_factory.mktemp("planted")
    model = planted_model()
    model.save_pretrained(folder / "base")
    planted_tokenizer().save_pretrained(folder / "base")
    region = known_region(model)
    region.save(folder / "known.safetensors")
    return SimpleNamespace(
        folder=folder, model=model, region=region, texts=write_texts(folder / "texts", documents=72)
    )


def recipe(base: Path, texts: Path, known: Path) -> CompareRecipe:
    """With two learning rates: all are compared at what plain gains at the lower one.

    The texts are few, so that all seeds see all of them and differ little.
    """
    source = TextSource(folder=str(texts), test_one_in=8)
    shared = {"sequence_length": LENGTH, "workers": 1}
    return CompareRecipe(
        train=TrainRecipe(
            ModelSource(str(base)),
            source,
            languages=[NEW],
            watch=Watch(source, languages=[*OLD, NEW], documents=40),
            optimization=Optimization(
                max_steps=16, sequence_length=LENGTH, micro_batch=32, warmup_steps=2
            ),
            workers=1,
        ),
        learning_rates=[4e-3, 8e-3],
        seeds=[0, 1, 2],
        scoring={"methods": ["taylor", "wanda"], "sequences": 64, "batch": 16, **shared},
        regions={
            "known": {"kind": "file", "path": str(known)},
            "random": {"kind": "random", "like": "known"},
            "core": {"kind": "core", "ratio": 0.25},
            "columns": {"kind": "core", "unit": "column", "ratio": 0.5, "scores": "wanda"},
        },
        variants={
            "plain": Variant(),
            "known": Variant("known"),
            "random": Variant("random", learning_rates=[6e-3, 1.6e-2]),  # it learns slowly
            "core": Variant("core"),
        },
    )


@pytest.fixture(scope="module")
def compared(planted, tmp_path_factory) -> SimpleNamespace:
    out = tmp_path_factory.mktemp("compared")
    told = recipe(planted.folder / "base", planted.texts, planted.folder / "known.safetensors")
    return SimpleNamespace(folder=out, results=compare.run(told, out).results)


@torch.no_grad()
@pytest.mark.parametrize("language", [*OLD, NEW])
def test_old_texts_read_the_known_region_alone(planted, language):
    rows = token_ids(sentences(language, 20, seed=7))
    before = planted.model(input_ids=rows).logits
    masks = planted.region.masks()
    kept = {name: p.clone() for name, p in planted.model.named_parameters()}
    try:
        for name, parameter in planted.model.named_parameters():
            parameter += ~masks[name] * torch.randn_like(parameter)
        after = planted.model(input_ids=rows).logits
    finally:
        planted.model.load_state_dict(kept)
    assert torch.equal(before, after) == (language in OLD)


def test_scores_of_the_old_languages_find_the_planted_weights(planted, compared):
    core, columns = (
        Region.load(compared.folder / "regions" / f"{name}.safetensors", planted.model)
        for name in ("core", "columns")
    )
    blocks = block_parameters(planted.model)
    assert core.names == columns.names == sorted(blocks)
    for name, weight in blocks.items():
        rows, first = halves(weight.shape[0])[:, None], halves(weight.shape[1])
        assert torch.equal(columns.masks()[name], first.expand_as(weight)), name
        assert torch.equal(core.masks()[name], rows & first), name  # where weights are not zero


def test_the_known_weights_are_found_better_and_random_ones_are_not(compared):
    comparison = compared.results["comparison"]
    (main,) = (one for one in comparison["at"] if one["gain"] == comparison["gain"])
    verdicts = {
        name: (found["mean"]["verdict"], found["worst"]["verdict"])
        for name, found in main["variants"].items()
    }
    assert verdicts["plain"] == ("reference", "reference")
    for name in ("known", "core"):
        assert verdicts[name] == ("better", "better"), name
    assert set(verdicts["random"]) <= {"worse", "no difference"}
    losses = {name: found["mean"]["loss"] for name, found in main["variants"].items()}
    assert losses["known"] == 0 < losses["core"] < losses["plain"]
    assert losses["random"] > 0.7 * losses["plain"]
    assert comparison["recommendation"]["any"]["variant"] == "known"


def test_what_the_known_weights_hold_is_kept_bit_for_bit(compared):
    for run in compared.results["runs"]:
        assert run["failed"] is None
        assert run["gain"] > 0.05
        kept = run["variant"] == "known"
        for language in OLD:
            assert (run["languages"][language] == 0) == kept, (run["variant"], language)
