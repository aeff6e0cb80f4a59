"""`ablate` against direct edits of a state dict and a plain loop for the loss."""

import json
import math
import re
from dataclasses import replace
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from plain_loss import edited, plain_figures

from freezetrain.analysis.ablate import (
    Ablation,
    Continuations,
    ablate_regions,
    plan_removals,
    removal_tables,
    run,
    text_tables,
)
from freezetrain.analysis.recipe import AblateRecipe
from freezetrain.errors import UserError
from freezetrain.evaluation import encode_documents
from freezetrain.recipe.sources import EvaluationTexts, ModelSource
from freezetrain.regions import Region
from freezetrain.regions.base import base_of
from freezetrain.scoring import Scores
from freezetrain.terminal import Terminal
from freezetrain.typed_json import from_json, to_json

LENGTH = 32


@pytest.fixture(scope="module")
def documents(udhr, tokenizer):
    return {name: encode_documents(udhr[name].test[:3], tokenizer) for name in ("en", "zh")}


@pytest.fixture
def model(make_model):
    """With matrices large enough for the loss to depend on them."""
    model = make_model()
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(20 if parameter.ndim == 2 else 1)
    return model


@pytest.fixture
def scores(model, tmp_path):
    """Of two languages, made up."""
    folder = tmp_path / "scores"
    folder.mkdir()
    for seed, language in enumerate(("en", "es")):
        tensors = {
            name: torch.rand(parameter.shape, generator=torch.manual_seed(seed))
            for name, parameter in model.model.layers.named_parameters(prefix="model.layers")
        }
        norms = [name for name in tensors if "norm" in name]
        made = {"method": "taylor", "language": language, "batches": 2, "norms": norms}
        Scores(tensors, base_of(model), made).save(folder / f"{language}.safetensors")
    return folder


def recipe_of(model_folder, **settings):
    evaluation = EvaluationTexts(languages=["en", "zh"], documents=3, max_length=LENGTH)
    return AblateRecipe(ModelSource(str(model_folder)), evaluation=evaluation, **settings)


@pytest.fixture
def ablation(model, model_folder, tokenizer, documents, scores):
    recipe = recipe_of(
        model_folder,
        scores=str(scores),
        ratios=[0.05, 0.2],
        random_seeds=[3, 4],
        prompts=["All human beings", "人人"],
        new_tokens=6,
    )
    return ablate_regions(recipe, model, tokenizer, documents)


def masks_of(folder, ratio, which):
    """By numpy: the highest or lowest of each tensor's summed scores, norms left out."""
    both = [Scores.load(folder / f"{name}.safetensors") for name in ("en", "es")]
    masks = {}
    for name in both[0]:
        if "norm" in name:
            continue
        total = both[0][name].numpy() + both[1][name].numpy()
        count = int(ratio * total.size + 0.5)
        order = np.argsort(total.ravel() * (-1 if which == "top" else 1), kind="stable")
        mask = np.zeros(total.size, dtype=bool)
        mask[order[:count]] = True
        masks[name] = torch.from_numpy(mask.reshape(total.shape))
    return masks


@pytest.mark.parametrize("ratio", [0.2, pytest.param(0.05, marks=pytest.mark.exhaustive)])
def test_figures_are_those_of_an_edited_model(ablation, model, documents, scores, ratio):
    cases = {"nothing": {}}
    cases |= {
        f"{which} {100 * ratio:g}%": masks_of(scores, ratio, which) for which in ("top", "bottom")
    }
    for name, masks in cases.items():
        changed = edited(
            model,
            lambda n, v, masks=masks: torch.where(masks[n], 0.0, v) if n in masks else v,
        )
        for language, (nll, tokens, size) in plain_figures(changed, documents, LENGTH).items():
            figures = ablation.figures[name][language]
            assert (figures.tokens, figures.bytes) == (tokens, size)
            assert math.isclose(figures.nll, nll, rel_tol=1e-6), (name, language)
    losses = [round(figures["en"].nll, 2) for figures in ablation.figures.values()]
    assert len(set(losses)) == len(losses) == 9  # each changes the loss by far more than rounding


def test_each_zeroed_region_is_named(ablation):
    assert list(ablation.figures) == ["nothing", *ablation.regions]
    assert list(ablation.regions) == [
        f"{what}" for share in ("5%", "20%")
        for what in (f"top {share}", f"bottom {share}", f"random {share}, seed 3",
                     f"random {share}, seed 4")
    ]  # fmt: skip
    random = ablation.regions["random 20%, seed 4"]
    assert (random.kind, random.ratio, random.seed) == ("random", 0.2, 4)
    assert random.like == "top 20%"
    assert random.entries == ablation.regions["top 20%"].entries
    assert random.share == pytest.approx(random.entries / 17_488, rel=0.05)


def test_summary_is_over_seeds(ablation):
    def rise(name, language):
        figures, nothing = (ablation.figures[n][language] for n in (name, "nothing"))
        return figures.nll_per_byte - nothing.nll_per_byte

    by_kind = {(effect.kind, effect.ratio): effect for effect in ablation.summary}
    assert len(by_kind) == len(ablation.summary) == 6
    random = by_kind["random", 0.2]
    names = ["random 20%, seed 3", "random 20%, seed 4"]
    assert random.regions == names
    means = [mean(rise(name, language) for language in ("en", "zh")) for name in names]
    assert random.mean_rise == pytest.approx(mean(means))
    assert random.spread == pytest.approx(stdev(means))
    rises = [rise(name, "zh") for name in names]
    assert random.languages["zh"].rise == pytest.approx(mean(rises))
    assert random.languages["zh"].spread == pytest.approx(stdev(rises))
    perplexities = [ablation.figures[name]["zh"].perplexity for name in names]
    assert random.languages["zh"].perplexity == pytest.approx(mean(perplexities))
    top = by_kind["top", 0.2]
    assert top.spread is None
    assert top.mean_rise == pytest.approx(mean(rise("top 20%", n) for n in ("en", "zh")))


def test_tables_have_a_ratio_each(ablation):
    tables = removal_tables(ablation)
    assert [table.title.split()[0] for table in tables] == ["5%", "20%"]
    assert list(dict.fromkeys(column.group for column in tables[0].columns)) == [
        "", "nothing", "top", "bottom", "random",
    ]  # fmt: skip
    english, _ = tables[1].cells()
    random = ablation.summary[-1]
    assert english[-1].key == random.rises["en"]
    assert english[-1].note == f"±{random.languages['en'].spread:.4f}"
    assert tables[1].foot_cells()[-1].key == random.mean_rise


def test_results_are_read_back(ablation):
    assert from_json(Ablation, json.loads(json.dumps(to_json(ablation)))) == ablation


def test_texts_are_what_the_edited_model_generates(ablation, model, tokenizer, scores):
    masks = masks_of(scores, 0.2, "top")
    changed = edited(model, lambda n, v: torch.where(masks[n], 0.0, v) if n in masks else v)
    for row in ablation.texts:
        ids = torch.tensor([[0, *tokenizer(row.prompt, add_special_tokens=False)["input_ids"]]])
        for name, speaker in (("nothing", model), ("top 20%", changed)):
            said = speaker.generate(ids, do_sample=False, max_new_tokens=6, pad_token_id=1)
            text = tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True)
            assert row.texts[name] == text
    assert [row.prompt for row in ablation.texts] == ["All human beings", "人人"]
    texts = {name: [row.texts[name] for row in ablation.texts] for name in ablation.figures}
    assert texts["nothing"] != texts["top 20%"]


def test_texts_are_shown_cut_and_without_what_acts_in_a_terminal(ablation, capsys):
    texts = {"nothing": "one\n[b]two[/b]\x1b[2J" + "x" * 300, "core": ""}
    shown = replace(ablation, texts=[Continuations("What\nis \x9b?" + "y" * 99, texts)])
    Terminal(width=400).print(*text_tables(shown))
    written = capsys.readouterr().out
    assert "after the prompt “What\\nis \\x9b?yyy" in written
    nothing, core = [line.split() for line in written.splitlines()[-2:]]
    assert (nothing[0], core) == ("nothing", ["core", "–"])
    assert nothing[1].startswith("one\\n[b]two[/b]\\x1b[2Jxxx")
    assert nothing[1].endswith("x…")
    assert not re.search("[\x1b\x9b]|x{240}|y{60}", written)


def test_a_region_file_and_random_ones_like_it(model_folder, make_model, tmp_path):
    region = Region.random(make_model(), 0.1, seed=9, parameters=["*mlp*"])
    region.save(tmp_path / "mine.safetensors")
    recipe = recipe_of(
        model_folder,
        regions=[str(tmp_path / "mine.safetensors")],
        random_seeds=[0, 1],
        prompts=["All human beings"],
        new_tokens=3,
    )
    outcome = run(recipe, tmp_path)
    names = ["mine", "random like mine, seed 0", "random like mine, seed 1"]
    assert list(outcome.results["regions"]) == names
    mine, control, _ = outcome.results["regions"].values()
    assert mine["kind"] == "file"
    assert mine["ratio"] is None
    assert control["like"] == "mine"
    assert control["entries"] == mine["entries"] == region.count
    assert [row["regions"] for row in outcome.results["summary"]] == [names[:1], names[1:]]
    table, texts = outcome.display
    assert texts.title == "after the prompt “All human beings”"
    (written,) = outcome.results["texts"]
    assert texts.rows == list(written["texts"].items())
    assert [row[0] for row in texts.rows] == ["nothing", *names]
    assert table.title.startswith("mine")
    perplexity = outcome.results["figures"]["mine"]["zh"]["perplexity"]
    assert f"{perplexity:,.1f}" in [cell.text for cell in table.cells()[1]]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "regions must be one or more, unless scores are given"),
        ({"scores": "s", "ratios": [0.0]}, "ratios must be above 0"),
        ({"scores": "s", "ratios": [0.1, 0.1]}, "ratios must be each a different one"),
        ({"scores": "s", "which": []}, "which must be one or more"),
        ({"regions": ["a"], "languages": ["en"]}, "languages must be left out"),
        ({"regions": ["a"], "norms": True}, "norms must be left out"),
        ({"regions": ["a"], "random_seeds": [-1]}, "random_seeds must be from 0"),
        ({"regions": ["a"], "prompts": [" "]}, "prompts must be texts"),
        ({"regions": ["a"], "new_tokens": 0}, "new_tokens must be 1 or more"),
    ],
)
def test_recipes_that_cannot_work(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        recipe_of("m", **settings)


@pytest.mark.parametrize("names", [["a/core", "b/core"], ["nothing"], ["top 1%"]])
def test_two_regions_of_one_name_are_refused(names):
    files = [f"{name}.safetensors" for name in names]
    with pytest.raises(UserError, match=r"two regions are called .*rename"):
        plan_removals(recipe_of("m", regions=files, scores="s"))


def test_scores_of_another_model_are_refused(make_model, tokenizer, documents, scores):
    with pytest.raises(UserError, match="another model"):
        ablate_regions(recipe_of("m", scores=str(scores)), make_model(seed=5), tokenizer, documents)


def test_scores_that_are_not_there_are_refused(model, tokenizer, documents, scores):
    recipe = recipe_of("m", scores=str(scores), languages=["ens"])
    with pytest.raises(UserError, match=r"no scores of language 'ens' \(did you mean"):
        ablate_regions(recipe, model, tokenizer, documents)
