"""A comparison of variants: its grid, what each run gives, and going on where it was stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from freezetrain.compare import compare
from freezetrain.compare.recipe import CompareRecipe, Variant
from freezetrain.compare.runs import grid, runs_together, visible_gpus
from freezetrain.errors import CheckError, UserError
from freezetrain.evaluation import evaluate_documents, forgetting
from freezetrain.measuring.held_out import held_out_documents
from freezetrain.models import load_model, load_tokenizer
from freezetrain.recipe import yaml12
from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.sources import ModelSource, TextSource
from freezetrain.regions import Region
from freezetrain.rehearsal import Rehearsal
from freezetrain.run_folder import claimed, write_outcome
from freezetrain.training import train
from freezetrain.training.recipe import Pull, Rehearse, TrainRecipe, Watch

LANGUAGES = ["zh", "en", "es"]


@pytest.fixture(scope="module")
def recipe(model_folder):
    train = TrainRecipe(
        ModelSource(str(model_folder)),
        languages=["zh"],
        optimization=Optimization(
            max_steps=3, sequence_length=32, micro_batch=2, warmup_steps=1, precision="32-true"
        ),
        watch=Watch(TextSource(), LANGUAGES, documents=2),
        workers=1,
    )
    return CompareRecipe(
        train,
        variants={
            "plain": Variant(),
            "core + vocabulary": Variant("core | vocabulary", learning_rates=[1e-2]),
            "replay": Variant(
                changes={"replay": {"languages": ["en"], "share": 0.5}},
                learning_rates=[5e-3],
                seeds=[1],
            ),
        },
        learning_rates=[1e-3, 1e-2],
        seeds=[0, 1],
        scoring={"sequences": 4, "sequence_length": 32},
        regions={"core": {"kind": "core", "ratio": 0.1}, "vocabulary": {"kind": "vocabulary"}},
    )


def made(recipe: CompareRecipe, folder: Path):
    """As the command line does it."""
    with claimed(folder, recipe, resumable=True):
        outcome = compare.run(recipe, folder)
    write_outcome(folder, "compare", outcome)
    return outcome


@pytest.fixture(scope="module")
def done(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "out"
    return folder, made(recipe, folder)


def test_the_grid_is_all_of_it_seed_by_seed(recipe):
    runs = grid(recipe, Path("runs"))
    both = [("plain", 1e-3), ("plain", 1e-2), ("core + vocabulary", 1e-2)]
    assert [(run.variant, run.learning_rate, run.seed) for run in runs] == [
        *((name, rate, 0) for name, rate in both),
        *((name, rate, 1) for name, rate in both),
        ("replay", 5e-3, 1),
    ]
    assert len({run.folder for run in runs}) == 7


def test_a_run_is_that_of_train_and_its_model_is_what_is_evaluated(recipe, done, tmp_path):
    folder, outcome = done
    (row,) = (
        row
        for row in outcome.results["runs"]
        if (row["variant"], row["learning_rate"], row["seed"]) == ("core + vocabulary", 1e-2, 1)
    )
    region = tmp_path / "region.safetensors"
    parts = [Region.load(folder / "regions" / f"{n}.safetensors") for n in ("core", "vocabulary")]
    (parts[0] | parts[1]).save(region)
    told = recipe.train
    settings = replace(told.optimization, learning_rate=1e-2, seed=1)
    told = replace(told, optimization=settings, region=str(region))
    train.run(replace(told, watch=Watch(off=True)), tmp_path / "run", table=False, progress=False)
    found = {}
    for path in (told.model.path, str(tmp_path / "run" / "model")):
        source = ModelSource(path)
        documents = held_out_documents(told.watch, load_tokenizer(source))
        found[path] = evaluate_documents(load_model(source), documents, max_length=128)
    expected = forgetting(*found.values(), "zh")
    assert row["gain"] == pytest.approx(expected.target_gain, rel=1e-6)
    assert row["mean"] == pytest.approx(expected.mean, rel=1e-6)
    assert row["worst"]["language"] == expected.worst[0]
    assert row["tokens"] == 3 * 2 * 32
    frozen = outcome.results["variants"]["core + vocabulary"]["frozen"]
    weights = sum(p.numel() for p in load_model(told.model).parameters())
    assert frozen == Region.load(region).count / weights


def test_what_it_leaves(done):
    folder, outcome = done
    for name in ("report.html", "results.json", "runs.csv", "base.json"):
        assert (folder / name).stat().st_size
    assert not list(folder.glob("runs/*/*/training"))  # models are large
    variants = outcome.results["variants"]
    assert [(v["reads_old"], v["trained_on_old"]) for v in variants.values()] == [
        (False, 0.0),
        (True, 0.0),
        (False, 0.5),
    ]
    assert outcome.results["comparison"]["reference"] == "plain"


def test_only_what_is_missing_is_run(recipe, done, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(done[0], folder)
    (folder / "results.json").unlink()
    gone = folder / "runs" / "plain" / "0.01-seed1"
    shutil.rmtree(gone)
    trained = []
    real = train.run
    monkeypatch.setattr(
        train, "run", lambda told, *rest, **more: trained.append(told) or real(told, *rest, **more)
    )
    again = made(recipe, folder)
    (told,) = trained
    assert (told.region, told.optimization.learning_rate, told.optimization.seed) == (None, 1e-2, 1)
    same = [{k: v for k, v in row.items() if k != "seconds"} for row in again.results["runs"]]
    assert same == [
        {k: v for k, v in row.items() if k != "seconds"} for row in done[1].results["runs"]
    ]


def test_a_rehearsal_is_made_once_and_a_run_is_that_of_train(recipe, done, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(done[0], folder)
    changes = {"rehearse": {"folder": "own", "share": 0.5}, "pull": {"strength": 5.0}}
    variants = {
        **recipe.variants,
        "rehearse": Variant(changes=changes, learning_rates=[1e-2], seeds=[0]),
    }
    rehearsals = {"own": {"sequences": 4, "batch": 2, "k": 8}}
    wider = replace(recipe, variants=variants, rehearsals=rehearsals)
    outcome = made(wider, folder)
    facts = outcome.results["variants"]["rehearse"]
    assert (facts["reads_old"], facts["trained_on_old"]) == (False, 0)
    (row,) = (row for row in outcome.results["runs"] if row["variant"] == "rehearse")
    drawn = folder / "rehearsals" / "own"
    assert len(Rehearsal(drawn)) == 4

    told = recipe.train
    settings = replace(told.optimization, learning_rate=1e-2, seed=0)
    told = replace(told, optimization=settings, watch=Watch(off=True), pull=Pull(5.0))
    told = replace(told, rehearse=Rehearse(str(drawn), 0.5))
    train.run(told, tmp_path / "run", table=False, progress=False)
    found = []
    for path in (told.model.path, str(tmp_path / "run" / "model")):
        source = ModelSource(path)
        documents = held_out_documents(recipe.train.watch, load_tokenizer(source))
        found.append(evaluate_documents(load_model(source), documents, max_length=128))
    assert row["mean"] == pytest.approx(forgetting(*found, "zh").mean, rel=1e-6)

    pieces = {file: file.stat().st_mtime_ns for file in drawn.rglob("*.safetensors")}
    made(wider, folder)
    assert {file: file.stat().st_mtime_ns for file in drawn.rglob("*.safetensors")} == pieces
    other = {"own": {**rehearsals["own"], "seed": 1}}
    with pytest.raises(UserError, match=r"rehearsals\.own was made in another way"):
        made(replace(wider, rehearsals=other), folder)


@pytest.mark.exhaustive
def test_a_pull_takes_regions_and_scores_of_the_comparison(recipe, tmp_path):
    by_region = {"strength": 5.0, "regions": {"core": 100.0, "core | vocabulary": 20.0}}
    variants = {
        "plain": Variant(),
        "by region": Variant(changes={"pull": by_region}),
        "everywhere": Variant(changes={"pull": {"strength": 5.0}}),
        "EWC": Variant(changes={"pull": {"strength": 5.0, "fisher": "fisher"}}),
    }
    scoring = {**recipe.scoring, "methods": ["taylor", "fisher"]}
    once = {"learning_rates": [1e-2], "seeds": [0], "scoring": scoring}
    folder = tmp_path / "out"
    outcome = made(replace(recipe, variants=variants, **once), folder)
    facts = outcome.results["variants"].values()
    assert [fact["reads_old"] for fact in facts] == [False, True, False, True]
    rows = {row["variant"]: row for row in outcome.results["runs"]}

    regions = {n: Region.load(folder / "regions" / f"{n}.safetensors") for n in recipe.regions}
    files = {}
    for number, (region, strength) in enumerate(
        [(regions["core"], 100.0), (regions["core"] | regions["vocabulary"], 20.0)]
    ):
        files[str(region.save(tmp_path / f"{number}.safetensors"))] = strength
    fisher = str(folder / "scores" / "fisher")
    for name, pull in {
        "plain": None,
        "by region": Pull(5.0, files),
        "everywhere": Pull(5.0),
        "EWC": Pull(5.0, fisher=fisher),
    }.items():
        told = recipe.train
        settings = replace(told.optimization, learning_rate=1e-2, seed=0)
        told = replace(told, optimization=settings, watch=Watch(off=True), pull=pull)
        train.run(told, tmp_path / name, table=False, progress=False)
        found = []
        for path in (told.model.path, str(tmp_path / name / "model")):
            source = ModelSource(path)
            documents = held_out_documents(recipe.train.watch, load_tokenizer(source))
            found.append(evaluate_documents(load_model(source), documents, max_length=128))
        assert rows[name]["mean"] == pytest.approx(forgetting(*found, "zh").mean, rel=1e-6)
    assert len({row["mean"] for row in rows.values()}) == len(rows)


def test_a_comparison_grows_and_what_was_done_stays(recipe, done, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(done[0], folder)
    count = []
    real = train.run
    monkeypatch.setattr(
        train, "run", lambda told, *rest, **more: count.append(told) or real(told, *rest, **more)
    )
    more = Variant(changes={"average_with_base": 0.5}, seeds=[0])
    wider = replace(recipe, variants={**recipe.variants, "averaged": more})
    outcome = made(wider, folder)
    assert [told.average_with_base for told in count] == [0.5, 0.5]
    assert len(outcome.results["runs"]) == 9
    told = json.loads((folder / "results.json").read_text())
    assert "averaged" in told["variants"]

    kept = (folder / "recipe.yaml").read_text()
    other = {
        **recipe.variants,
        "core + vocabulary": replace(recipe.variants["core + vocabulary"], region="core"),
    }
    with pytest.raises(UserError, match="holds the run with another region; call the changed"):
        made(replace(recipe, variants=other), folder)
    other = replace(recipe, regions={**recipe.regions, "core": {"kind": "core", "ratio": 0.2}})
    with pytest.raises(UserError, match=r"regions\.core was made in another way"):
        made(other, folder)
    other = {**wider.variants, "bad": Variant(changes={"lora": {"targets": ["q_prj"]}})}
    with pytest.raises(UserError, match=r"variants\.bad: lora\.targets has 'q_prj'"):
        made(replace(wider, variants=other), folder)
    # What was there stays, and is still what it was.
    assert (folder / "recipe.yaml").read_text() == kept
    assert json.loads((folder / "results.json").read_text()) == told
    assert not (folder / "runs" / "bad").exists()
    longer = replace(recipe.train, optimization=replace(recipe.train.optimization, max_steps=4))
    with pytest.raises(UserError, match=r"with another train\.optimization\.max_steps"):
        made(replace(recipe, train=longer), folder)


def test_a_run_killed_after_its_last_step_is_a_result(recipe, done, tmp_path):
    """Its checkpoint has all steps, its figures are still to be made."""
    folder = tmp_path / "copy"
    shutil.copytree(done[0], folder)
    (folder / "results.json").unlink()
    one = folder / "runs" / "plain" / "0.01-seed1"
    told = replace(recipe, keep_models=True, train=replace(recipe.train, checkpoint_every=3))
    for run in folder.glob("runs/*/*/results.json"):  # as if made by this recipe
        kept = json.loads(run.read_text())
        kept["recipe"]["checkpoint_every"] = 3
        run.write_text(json.dumps(kept))
    recipe_file = folder / "recipe.yaml"
    recipe_file.write_text(yaml12.dump(asdict(told)))
    before = json.loads((one / "results.json").read_text())
    shutil.rmtree(one)
    made(told, folder)
    assert (one / "training" / "model").is_dir()
    (one / "results.json").unlink()
    (folder / "results.json").unlink()
    outcome = made(replace(told, keep_models=False), folder)
    after = json.loads((one / "results.json").read_text())
    assert not (one / "training").exists()
    assert (after["tokens"], after["gain"]) == (before["tokens"], pytest.approx(before["gain"]))
    assert outcome.results["seconds"] > 0


def test_a_folder_that_grows_is_still_held_against_others(recipe, done, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(done[0], folder)
    wider = replace(recipe, seeds=[0, 1, 2])
    with (
        claimed(folder, wider, resumable=True),
        pytest.raises(UserError, match="another process is at work"),
        claimed(folder, replace(wider, seeds=[0, 1]), resumable=True),
    ):
        pass


def test_a_run_that_diverges_is_a_result(recipe, tmp_path):
    wild = Variant(changes={"optimization": {"clip_norm": 1e9}}, learning_rates=[1e30])
    told = replace(recipe, variants={"plain": Variant(), "wild": wild}, seeds=[0])
    outcome = made(told, tmp_path / "out")
    failed = [row for row in outcome.results["runs"] if row["failed"]]
    assert [row["variant"] for row in failed] == ["wild"]
    assert "inf" in failed[0]["failed"] or "nan" in failed[0]["failed"]
    assert failed[0]["gain"] is None


def test_a_run_that_fails_is_said_in_the_end_and_the_others_are_done(recipe, tmp_path, monkeypatch):
    real = train.run

    def fails(told, *rest, **more):
        if told.region is not None and told.optimization.seed == 0:
            raise CheckError("a frozen entry moved")
        return real(told, *rest, **more)

    monkeypatch.setattr(train, "run", fails)
    said = r"core \+ vocabulary, learning rate 0.001, seed 0 \(and 1 runs more\): a frozen entry"
    fewer = {"plain": Variant(), "core + vocabulary": Variant("core | vocabulary")}
    told = replace(recipe, variants=fewer, seeds=[0])
    with pytest.raises(CheckError, match=said):
        made(told, tmp_path / "out")
    there = [run.done for run in grid(told, tmp_path / "out" / "runs")]
    assert there == [True, True, False, False]
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.exhaustive
def test_killed_in_the_middle_and_called_again_with_two_at_once(recipe, done, tmp_path):
    """As a user does: the command, SIGKILL, the same command."""
    path, folder = tmp_path / "recipe.yaml", tmp_path / "out"
    path.write_text(yaml12.dump(asdict(recipe)))
    command = [sys.executable, "-m", "freezetrain", "compare", str(path), "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while first.poll() is None and len(list(folder.glob("runs/*/*/results.json"))) < 2:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/*/results.json")}
    assert 2 <= len(before) < 7
    command += ["--runs_at_once", "2"]
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"7 runs, {len(before)} of them done before; 2 at once" in again.stderr
    kept_back = ("GPU available", "LitLogger", "is deprecated", "`Trainer.fit` stopped")
    assert not [line for line in again.stderr.splitlines() if any(map(line.count, kept_back))]
    assert all(p.stat().st_mtime_ns == at for p, at in before.items())
    rows = json.loads((folder / "results.json").read_text())["runs"]
    for row, other in zip(rows, done[1].results["runs"], strict=True):
        assert row["mean"] == pytest.approx(other["mean"], rel=1e-5)


@pytest.mark.parametrize(
    ("told", "expected"),
    [(None, ["0", "1"]), ("3,5", ["3", "5"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"])],
)
def test_runs_are_spread_over_the_gpus_that_are_visible(told, expected, recipe, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if told is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
    assert visible_gpus() == expected
    assert runs_together(replace(recipe, runs_at_once=3)) == 6
