"""What `freezetrain select` makes of scores, sets and weights, beside plain torch and sets."""

import pytest
import torch
from safetensors.torch import load_file
from verbs import freezetrain, results

from freezetrain.analysis import select as select_verb
from freezetrain.regions import Region, block_parameters, fingerprint
from freezetrain.regions.base import base_of
from freezetrain.scoring import Scores, select
from freezetrain.scoring.without_text import random_scores

LANGUAGES = ("en", "ja", "ko")


@pytest.fixture
def scores(tmp_path, model):
    """Language → parameter → scores, saved in the folder ``scores``."""
    (tmp_path / "scores").mkdir()
    made = {}
    for seed, language in enumerate(LANGUAGES):
        generator = torch.Generator().manual_seed(seed)
        made[language] = {
            name: torch.rand(parameter.shape, generator=generator)
            for name, parameter in block_parameters(model).items()
        }
        facts = {"method": "taylor", "batches": 1, "language": language}
        Scores(made[language], base_of(model), facts).save(
            tmp_path / "scores" / f"{language}.safetensors"
        )
    return made


def tops(scores: dict, ratio: float) -> set[tuple[str, int]]:
    """(parameter, flat index) of the highest scores."""
    found = set()
    for name, values in scores.items():
        flat = values.flatten().tolist()
        order = sorted(range(len(flat)), key=lambda index: (-flat[index], index))
        found |= {(name, index) for index in order[: int(ratio * len(flat) + 0.5)]}
    return found


def entries(region: Region) -> set[tuple[str, int]]:
    return {(name, index) for name in region for index in region.indices(name).tolist()}


def test_monolingual_regions_of_every_language_and_of_one(scores, tmp_path):
    of = {language: tops(values, 0.2) for language, values in scores.items()}
    words = ("select", "--kind", "monolingual", "--scores", tmp_path / "scores", "--ratio", 0.2)
    assert freezetrain(*words, "--out", tmp_path / "all") == 0
    saved = results(tmp_path / "all")["regions"]
    assert list(saved) == list(LANGUAGES)
    for language in LANGUAGES:
        region = Region.load(tmp_path / "all" / f"{language}.safetensors")
        others = set.union(*(of[other] for other in LANGUAGES if other != language))
        assert entries(region) == of[language] - others
        assert saved[language]["entries"] == region.count
    assert freezetrain(*words, "--language", "ja", "--out", tmp_path / "ja") == 0
    assert Region.load(tmp_path / "ja" / "region.safetensors") == Region.load(
        tmp_path / "all" / "ja.safetensors"
    )
    # Of some languages only, with the one that is asked for beside them.
    some = ("--language", "ja", "--languages", "[ko]")
    assert freezetrain(*words, *some, "--out", tmp_path / "some") == 0
    region = Region.load(tmp_path / "some" / "region.safetensors")
    assert entries(region) == of["ja"] - of["ko"]


def test_a_name_in_brackets_is_shown_as_it_is(scores, tmp_path, capsys):
    folder = tmp_path / "scores"
    (folder / "ko.safetensors").rename(folder / "[ko].safetensors")
    words = ("select", "--kind", "monolingual", "--scores", folder, "--out", tmp_path / "all")
    assert freezetrain(*words) == 0
    assert capsys.readouterr().out.count("[ko]") == 2  # the name and its file


def test_expressions_over_scores_and_region_files(scores, tmp_path):
    total = {name: sum(scores[language][name] for language in LANGUAGES) for name in scores["en"]}
    of = {language: tops(values, 0.2) for language, values in scores.items()}
    both = ("--scores", tmp_path / "scores", "--ratio", 0.2)
    words = ("select", *both, "--expression", "core - ja | ja & ko", "--out", tmp_path / "made")
    assert freezetrain(*words) == 0
    region = Region.load(tmp_path / "made" / "region.safetensors")
    assert entries(region) == tops(total, 0.2) - of["ja"] | of["ja"] & of["ko"]
    assert results(tmp_path / "made")["made"]["expression"] == "core - ja | ja & ko"

    (tmp_path / "regions").mkdir()
    region.save(tmp_path / "regions" / "mine-1.safetensors")
    more = ("--regions", tmp_path / "regions", "--expression", '"mine-1" ^ en')
    assert freezetrain("select", *both, *more, "--out", tmp_path / "both") == 0
    assert entries(Region.load(tmp_path / "both" / "region.safetensors")) == (
        entries(region) ^ of["en"]
    )
    alone = ("--regions", tmp_path / "regions", "--expression", "'mine-1'")
    assert freezetrain("select", *alone, "--out", tmp_path / "alone") == 0
    assert Region.load(tmp_path / "alone" / "region.safetensors") == region


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--expression", "core - jaa"),
         "the name of a region at character 8 of 'core - jaa', got 'jaa' (did you mean 'ja'?); "
         "there are en, ja, ko, core"),
        (("--expression", "core -"), "'core -', which cannot be read from character 7 on"),
        (("--kind", "core", "--expression", "en"),
         "expression must be left out: a core region does not use it"),
        (("--kind", "expression"), "expression must be given to select an expression region"),
        (("--expression", "en", "--regions", "scores"), "'en' is a file in scores and also a name"),
        (("--kind", "cor"), "kind: expected one of 'core', 'monolingual', 'random', 'vocab"),
    ],
)  # fmt: skip
def test_what_cannot_be_combined(scores, tmp_path, capsys, more, complaint):
    assert freezetrain("select", "--scores", tmp_path / "scores", *more, "--out", "out") == 2
    assert complaint in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_an_expression_needs_sets(capsys):
    assert freezetrain("select", "--expression", "a - b") == 2
    assert "regions must be given, or else scores" in " ".join(capsys.readouterr().err.split())
    alone = ("--expression", "a - b", "--regions", "x", "--ratio", 0.2)
    assert freezetrain("select", *alone) == 2
    assert "ratio must be left out: an expression region" in capsys.readouterr().err


@pytest.mark.parametrize("whole", [False, True])
def test_magnitude_takes_the_largest_weights(model_folder, model, tmp_path, monkeypatch, whole):
    def unwanted(*_):
        raise AssertionError("the model was loaded whole")

    if whole:  # as where files hold other names than the model has
        monkeypatch.setattr(select_verb.WeightsFolder, "stored_name", failing)
    else:
        monkeypatch.setattr(select_verb, "load_model", unwanted)
    words = ("--kind", "magnitude", "--model", model_folder, "--ratio", 0.1, "--which", "bottom")
    assert freezetrain("select", *words, "--out", tmp_path / "out") == 0
    region = Region.load(tmp_path / "out" / "region.safetensors", model)  # the base is checked
    held = load_file(model_folder / "model.safetensors")
    wanted = {name: -held[name].abs() for name in block_parameters(model)}
    assert entries(region) == tops(wanted, 0.1)
    assert region.base.fingerprint == fingerprint(model)
    assert region.made["scores"]["method"] == "magnitude"


def failing(self, name, shape):
    raise select_verb.UserError("other names")


def test_magnitude_is_of_weights_in_the_wanted_type(model_folder, tmp_path):
    words = ("--kind", "magnitude", "--model", model_folder, "--model.dtype", "bfloat16")
    assert freezetrain("select", *words, "--ratio", 0.3, "--out", tmp_path / "out") == 0
    held = load_file(model_folder / "model.safetensors")
    region = Region.load(tmp_path / "out" / "region.safetensors")
    wanted = {name: held[name].bfloat16().float().abs() for name in region}
    assert entries(region) == tops(wanted, 0.3)
    assert entries(region) != tops({name: held[name].abs() for name in region}, 0.3)


def test_random_columns_of_a_model(model_folder, model, tmp_path):
    words = ("--kind", "random", "--model", model_folder, "--unit", "column", "--ratio", 0.5)
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        assert freezetrain("select", *words, "--seed", seed, "--out", tmp_path / name) == 0
    a, b, c = (Region.load(tmp_path / name / "region.safetensors", model) for name in "abc")
    assert a == c != b
    assert a == select(random_scores(model, 0, "column"), 0.5, unit="column")
    matrices = {name: p for name, p in block_parameters(model).items() if p.ndim == 2}
    assert a.names == sorted(matrices)
    for name, mask in a.masks().items():
        full = mask.all(0)
        assert torch.equal(mask, full.expand_as(mask))  # nothing but whole columns
        assert int(full.sum()) == matrices[name].shape[1] // 2
    assert a.made["scores"] == {"method": "random", "seed": 0, "batches": 1}


def test_whole_blocks(model_folder, model, tmp_path, capsys):
    words = ("select", "--kind", "layers", "--model", model_folder)
    assert freezetrain(*words, "--last", 1, "--norms", "true", "--out", tmp_path / "a") == 0
    region = Region.load(tmp_path / "a" / "region.safetensors", model)
    assert region == Region.tensors(model, ["model.layers.1.*"])
    assert freezetrain(*words, "--first", 2, "--last", 1, "--out", tmp_path / "b") == 2
    assert "expected 1 to 2 decoder blocks in all" in " ".join(capsys.readouterr().err.split())
