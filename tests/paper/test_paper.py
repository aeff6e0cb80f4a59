"""`freezetrain paper` on a tiny model: each part is what its own verb gives; it goes on."""

import html
import json
import shutil
from pathlib import Path

import pytest
import yaml
from forked_ranks import run_ranks
from verbs import freezetrain, on_a_rank, results

from freezetrain.analysis import effects
from freezetrain.data.texts import read_languages
from freezetrain.paper import paper
from freezetrain.paper.experiments import PaperScores, evaluations
from freezetrain.paper.recipe import PaperRecipe
from freezetrain.recipe.sources import ModelSource, TextSource
from freezetrain.regions import Region
from freezetrain.scoring import Scores, monolingual, select

RECIPE = {
    "core_languages": ["en", "es"],
    "sequence_length": 16,
    "sequences": 16,
    "snapshots": [4],
    "batch": 4,
    "ratios": [0.05, 0.1],
    "monolingual_ratio": 0.2,
    "random_seeds": [0, 1],
    "weights": 2,
    "documents": 2,
    "max_length": 32,
    "prompts": ["Everyone has the"],
    "new_tokens": 3,
}
CHANGES = ["dimensions", "norms", "reinitialize", "scale", "zero"]
PARTS = ["ablation", "dimensions", "overlap", "selectivity", *(f"weights-{n}" for n in CHANGES)]


@pytest.fixture(scope="module")
def place(tmp_path_factory, model_folder) -> Path:
    """A folder with texts of three languages and the recipe."""
    folder = tmp_path_factory.mktemp("paper")
    (folder / "texts").mkdir()
    for name in ("en", "es", "zh"):
        language = read_languages(TextSource(), [name])[name]
        rows = [{"text": text} for text in [*language.train, *language.test]]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / "texts" / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    sources = {
        "model": {"path": str(model_folder)},
        "texts": {"folder": str(folder / "texts")},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | sources), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def counted() -> dict[str, int]:
    """Evaluations of ``done``: announced before, and made after that of the model as it is."""
    return {"announced": 0, "made": -1}


@pytest.fixture(scope="module")
def done(place, counted) -> Path:
    def announce(study):
        told = evaluations(study)
        counted["announced"] = sum(told.values())
        return told

    def count(*arguments, **options):
        counted["made"] += 1
        return evaluate(*arguments, **options)

    evaluate = effects.evaluate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "evaluations", announce)
        patch.setattr(effects, "evaluate", count)
        assert freezetrain("paper", place / "recipe.yaml", "--out", place / "out") == 0
    return place / "out"


def test_as_many_evaluations_are_made_as_were_announced(done, counted):
    assert counted["announced"] > 30
    assert counted["made"] == pytest.approx(counted["announced"], rel=0.15)


def test_everything_is_there(done):
    found = results(done)
    assert found["languages"] == {
        "scored": ["en", "es", "zh"],
        "core": ["en", "es"],
        "evaluated": ["en", "es", "zh"],
    }
    assert sorted(path.stem for path in (done / "parts").iterdir()) == PARTS
    assert set(found["selectivity"]["rise"]) == {"en", "es", "zh"}
    assert found["overlap"]["samples"]["names"] == ["4 sequences", "8 sequences", "all"]
    assert found["overlap"]["methods"]["names"] == ["taylor", "taylor-abs", "magnitude"]
    assert found["overlap"]["halves"]["names"] == ["en", "es", "zh"]
    assert sorted(found["weights"]) == CHANGES
    assert len(found["weights"]["zero"]["weights"]) == 2
    texts = found["ablation"]["texts"][0]["texts"]
    assert list(texts)[:2] == ["nothing", "top 5%"]
    page = (done / "report.html").read_text(encoding="utf-8")
    assert all(html.escape(claim["seen"]) in page for claim in found["claims"])
    assert (done / "pictures" / "selectivity.svg").is_file()
    assert list((done / "tensorboard").glob("events.out.tfevents.*"))


def test_regions_are_those_of_the_scores(done):
    scores = {
        name: Scores.load(done / "scores" / "taylor" / f"{name}.safetensors")
        for name in ("en", "es", "zh")
    }
    core = select(Scores.sum([scores["en"], scores["es"]]), 0.05)
    assert Region.load(done / "regions" / "core-0.05.safetensors") == core
    for name, region in monolingual(scores, 0.2).items():
        assert Region.load(done / "regions" / "monolingual" / f"{name}.safetensors") == region
    # The second half is what the first has not seen: sums of gradients are not kept, counts are.
    halves = [
        Scores.load(folder / "zh.safetensors").made
        for folder in (done / "scores" / "taylor" / "at-8", done / "scores-second-half")
    ]
    assert [made["sequences"] for made in halves] == [8, 8]
    total = sum(made["loss"] * made["tokens"] for made in halves)
    assert total / sum(made["tokens"] for made in halves) == pytest.approx(
        scores["zh"].made["loss"], rel=1e-6
    )


def test_removal_is_that_of_ablate(done, place, model_folder):
    assert freezetrain(
        "ablate", "--model", model_folder, "--scores", done / "scores" / "taylor",
        "--languages", "[en,es]", "--ratios", "[0.05]", "--random_seeds", "[1]",
        "--evaluation.texts.folder", place / "texts", "--evaluation.documents", 2,
        "--evaluation.max_length", 32, "--out", place / "ablate",
    ) == 0  # fmt: skip
    alone, whole = results(place / "ablate")["figures"], results(done)["ablation"]["figures"]
    for name in ("nothing", "top 5%", "bottom 5%", "random 5%, seed 1"):
        assert alone[name] == whole[name]


def test_goes_on_where_it_was(done, place, capsys, monkeypatch):
    """Parts that are there are not made again; what is missing comes out the same."""
    for draw in ("render_paper", "draw_all"):  # which takes long, and has been seen
        monkeypatch.setattr(f"freezetrain.paper.paper.{draw}", lambda results, path: None)
    again = place / "again"
    shutil.copytree(done, again)
    (again / "results.json").unlink()
    (again / "parts" / "weights-scale.json").unlink()
    path = again / "parts" / "ablation.json"
    ablation = json.loads(path.read_text(encoding="utf-8"))
    ablation["found"]["texts"][0]["texts"]["nothing"] = "kept as it was"
    path.write_text(json.dumps(ablation), encoding="utf-8")
    assert freezetrain("paper", place / "recipe.yaml", "--out", again) == 0
    found, first = results(again), results(done)
    assert found["ablation"]["texts"][0]["texts"]["nothing"] == "kept as it was"
    assert found["weights"] == first["weights"]
    assert found["overlap"] == first["overlap"]
    assert found["seconds"]["selectivity"] == first["seconds"]["selectivity"]
    (again / "results.json").unlink()
    del ablation["found"]["summary"]
    path.write_text(json.dumps(ablation), encoding="utf-8")
    assert freezetrain("paper", place / "recipe.yaml", "--out", again) == 2
    assert "parts/ablation.json is not of this version" in " ".join(capsys.readouterr().err.split())


@pytest.mark.exhaustive
def test_two_ranks_find_the_same(done, place):
    words = ["paper", str(place / "recipe.yaml"), "--out", str(place / "two")]
    assert run_ranks(on_a_rank, *words, timeout=250) == [0, 0]
    one, two = results(done), results(place / "two")
    # A tie of scores that rounding breaks may move an entry.
    cores = [
        Region.load(run / "regions" / "core-0.05.safetensors") for run in (done, place / "two")
    ]
    assert cores[0].jaccard(cores[1]) > 0.98
    for name in ("nothing", "top 5%", "random 10%, seed 0"):
        for language, figures in one["ablation"]["figures"][name].items():
            there = two["ablation"]["figures"][name][language]
            assert there["tokens"] == figures["tokens"]
            assert there["nll"] == pytest.approx(figures["nll"], rel=1e-4)
    assert list(one["seconds"]) == list(two["seconds"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--core_languages", "[en,ze]"], "there are no texts of language 'ze'"),
        (["--languages", "[en]", "--core_languages", "[]"], "none of the paper's core languages"),
        (["--languages", "[en]"], "core_languages must be among languages"),
        (["--evaluated", "[en,es]"], "among those evaluated, where their regions are tested"),
        (
            ["--core_languages", "[en,en]"],
            "core_languages: expected each name once, got 'en' twice",
        ),
        (["--ratios", "[0]"], "ratios must be above 0"),
        (["--methods", "[magnitude, taylor]"], "magnitude knows no language"),
        (["--ratios", "[0.00001]"], "expected ratios of which a matrix has a weight, got 1e-05"),
        (["--ratios", "[0.1,0.1]"], "ratios must be each a different one"),
        (["--random_seeds", "[-1]"], "random_seeds must be from 0"),
        (["--new_tokens", "0"], "new_tokens must be 1 or more"),
        (["--new_tokens", "1000"], "do not fit into the model's"),
    ],
)
def test_refused_before_anything_is_scored(words, said, place, tmp_path, capsys):
    assert freezetrain("paper", place / "recipe.yaml", *words, "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_language_with_few_texts_has_no_other_half(place, model_folder, tmp_path):
    """And it does not stop what is compared of the core."""
    shutil.copytree(place / "texts", tmp_path / "texts")
    few = "\n".join(json.dumps({"text": "few words " * length}) for length in range(20, 30))
    (tmp_path / "texts" / "zh.jsonl").write_text(few, encoding="utf-8")
    recipe = PaperRecipe(
        ModelSource(str(model_folder)),
        TextSource(str(tmp_path / "texts")),
        sequence_length=16,
        sequences=180,
        snapshots=[80],
        methods=["taylor"],
        batch=50,
    )
    scores = PaperScores(recipe, tmp_path / "out", ["en", "es", "zh"], ["en", "es"])
    assert scores.made["zh"]["sequences"] < 80
    assert scores.snapshots == [80, 90]
    assert scores.core_sum(sequences=90).keys() == scores.core_sum().keys()
    assert scores.halved == ["en", "es"]
    assert list(scores.halves()) == ["en", "es"]
