"""`train` leaves a page of its run, and `report` shows runs side by side."""

import csv
import json
import shutil

import pytest
import yaml

from freezetrain.cli import main
from freezetrain.cli.command_line import parse
from freezetrain.regions import Region

RECIPE = {
    "languages": ["zh"],
    "optimization": {
        "max_steps": 6, "sequence_length": 32, "micro_batch": 4, "learning_rate": 0.01,
    },
    "watch": {"every_n_steps": 2, "max_length": 64},
}  # fmt: skip


def freezetrain(*arguments) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code


@pytest.fixture(scope="module")
def runs(tmp_path_factory, model_folder, make_model, udhr):
    """plain and frozen, which differ in a region; braked, which a limit ends; blind, unwatched."""
    root = tmp_path_factory.mktemp("runs")
    texts = root / "texts"
    texts.mkdir()
    for name, language in udhr.items():
        rows = [json.dumps({"text": text}) for text in [*language.train, *language.test]]
        (texts / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    region = Region.random(make_model(), 0.05, seed=1)
    region.save(root / "core.safetensors")
    source = {"folder": str(texts)}
    told = {**RECIPE, "model": {"path": str(model_folder)}, "texts": source}
    told["watch"] = {**RECIPE["watch"], "texts": source}
    for name, more in {
        "plain": {},
        "frozen": {"region": str(root / "core.safetensors")},
        "braked": {"brake": {"limits": {"mean": 1e-6}, "action": "roll_back"}},
        "blind": {"watch": {"off": True}},
    }.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump({**told, **more}))
        assert freezetrain("train", root / f"{name}.yaml", "--out", root / name) == 0
    return root


def page(folder) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def rows(folder) -> list[dict[str, str]]:
    with (folder / "forgetting.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_train_leaves_a_page_where_languages_are_watched(runs):
    assert "“plain”, step 6: gain of Chinese" in page(runs / "plain")
    assert not (runs / "blind" / "report.html").exists()
    assert "optimization.learning_rate" in page(runs / "plain")


def test_region_facts_are_in_results_and_page(runs):
    region = Region.load(runs / "core.safetensors")
    facts = json.loads((runs / "frozen" / "results.json").read_text())["region"]
    assert facts["entries"] == region.count
    assert facts["digest"] == region.digest
    assert f"{region.count:,}, " in page(runs / "frozen")
    assert "frozen: each has the bits that it had in the base" in page(runs / "frozen")
    assert "region" not in json.loads((runs / "plain" / "results.json").read_text())


def test_a_run_that_its_brake_ended_says_so(runs):
    brake = json.loads((runs / "braked" / "results.json").read_text())["brake"]
    assert brake["ended_at_step"] == 2
    assert "Training ended at step 2. Model of step 0." in page(runs / "braked")


def test_side_by_side(runs, tmp_path):
    out = tmp_path / "out"
    assert freezetrain("report", runs / "plain", f"{runs}/frozen/", "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {
        "recipe.yaml", "results.json", "report.html", "forgetting.csv", "forgetting.md",
    }  # fmt: skip
    found = {(row["model"], row["language"]): row for row in rows(out)}
    assert {name for name, _ in found} == {"plain", "frozen"}
    for name in ("plain", "frozen"):
        history = json.loads((runs / name / "forgetting.json").read_text())
        last = history["evaluations"][-1]
        assert last["step"] == 6
        for code, change in last["forgetting"]["languages"].items():
            row = found[name, code]
            assert float(row["delta_nll_per_byte"]) == change["delta_nll_per_byte"]
            assert float(row["perplexity"]) == last["figures"][code]["perplexity"]
        gain = float(found[name, "zh"]["delta_nll_per_byte"])
        assert gain == -last["forgetting"]["target_gain"]
    assert "Settings in which the runs differ" in page(out)
    assert "| plain | zh (target) |" in (out / "forgetting.md").read_text(encoding="utf-8")


def test_a_file_alone_and_a_report_are_runs_too(runs, tmp_path):
    history, name = runs / "plain" / "forgetting.json", "a b"
    first, second = tmp_path / "first", tmp_path / "second"
    assert freezetrain("report", history, "--names", f"[{name}]", "--out", first) == 0
    assert freezetrain("report", first, runs / "frozen", "--out", second) == 0
    assert {row["model"] for row in rows(second)} == {"first", "frozen"}
    for row in rows(first):
        assert {**row, "model": "first"} in rows(second)


def test_names_are_no_markup(runs, tmp_path, capsys):
    history = runs / "plain" / "forgetting.json"
    assert freezetrain("report", history, "--names", '["v1[/b]"]', "--out", tmp_path / "out") == 0
    assert "v1[/b]" in capsys.readouterr().out


def test_files_are_called_after_their_folders(runs, tmp_path):
    files = [runs / name / "forgetting.json" for name in ("plain", "frozen")]
    assert freezetrain("report", *files, "--out", tmp_path / "out") == 0
    assert {row["model"] for row in rows(tmp_path / "out")} == {"plain", "frozen"}


def test_a_run_that_is_under_way(runs, tmp_path):
    shutil.copytree(runs / "plain", tmp_path / "plain")
    (tmp_path / "plain" / "results.json").unlink()
    assert freezetrain("report", tmp_path / "plain", "--out", tmp_path / "out") == 0
    assert "optimization.learning_rate" in page(tmp_path / "out")


def test_the_runs_of_a_quickstart(runs, tmp_path):
    held = {
        name: json.loads((runs / name / "forgetting.json").read_text())
        for name in ("plain", "frozen")
    }
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "results.json").write_text(json.dumps({"runs": held}))
    assert freezetrain("report", tmp_path / "quick", "--out", tmp_path / "a") == 0
    assert {row["model"] for row in rows(tmp_path / "a")} == {"plain", "frozen"}
    both = ("report", tmp_path / "quick", runs / "plain")
    assert freezetrain(*both, "--out", tmp_path / "b") == 0
    assert {row["model"] for row in rows(tmp_path / "b")} == {
        "quick: plain", "quick: frozen", "plain",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["none"], "none, and there is nothing; give a run whose watch was on"),
        (["blind"], "blind, and there is no evaluation in it; give a run whose watch was on"),
        (["plain", "plain"], "expected each path once"),
        (["plain", "--names", "[a,b]"], "expected a name for each of 1 runs, got 2"),
        (["plain", "frozen", "--names", "[a,a]"], "a name of its own for each run, got 'a' twice"),
        ([], "missing runs: give it on the command line"),
        (["--out", "other", "plain"], "did not expect 'plain': words without an option's name"),
        (["core.safetensors"], "cannot read"),
        (["old.json"], "this version's ForgettingTracker or train writes"),
        (["odd.json"], "this version's ForgettingTracker or train writes"),
        (["short.json"], "step 2 is not of the languages of the first evaluation"),
        (["list.json"], "expected a mapping in"),
        (["mistyped.json"], "cannot read the evaluations of a run in mistyped.json: the run."),
        (["empty.json"], "figures need at least one predicted token"),
        (["recipe"], "cannot read the recipe of a run, recipe/recipe.yaml: expected a mapping"),
        (["torn"], "cannot read"),
        (["started"], "an evaluation of the base and one after it, and the run 'started' has 1"),
    ],
)
def test_what_cannot_be_shown_is_refused(runs, tmp_path, monkeypatch, capsys, words, complaint):
    history = json.loads((runs / "plain" / "forgetting.json").read_text())
    (runs / "old.json").write_text(json.dumps({"evaluations": history["evaluations"][:1]}))
    (runs / "odd.json").write_text(json.dumps({"target": None, "evaluations": 3}))
    (runs / "list.json").write_text("[]")
    short = json.loads(json.dumps(history))
    del short["evaluations"][1]["figures"]["en"]
    (runs / "short.json").write_text(json.dumps(short))
    for name, figure, value in (("mistyped", "correct", "x"), ("empty", "tokens", 0)):
        changed = json.loads(json.dumps(history))
        changed["evaluations"][0]["figures"]["en"][figure] = value
        (runs / f"{name}.json").write_text(json.dumps(changed))
    (runs / "recipe").mkdir(exist_ok=True)
    (runs / "recipe" / "forgetting.json").write_text(json.dumps(history))
    (runs / "recipe" / "recipe.yaml").write_text("[1]")
    for name, text in {
        "torn": '{"target": ',
        "started": json.dumps(history | {"evaluations": history["evaluations"][:1]}),
    }.items():
        (runs / name).mkdir(exist_ok=True)
        (runs / name / "forgetting.json").write_text(text)
    monkeypatch.chdir(runs)
    out = tmp_path / "out"
    assert freezetrain("report", *words, "--out", out) == 2
    said = capsys.readouterr().err
    assert complaint in said.replace("\n", " ")
    assert said.count("\n") == 1
    assert not out.exists()


def test_words_of_the_command_line_stay_words():
    told = parse(["report", "12", "[a]", "b: c", "--names", "[x]", "--out", "o"])
    assert told.recipe.runs == ["12", "[a]", "b: c"]
    assert told.recipe.names == ["x"]
    assert parse(["report", "--runs", "[a, b]"]).recipe.runs == ["a", "b"]
