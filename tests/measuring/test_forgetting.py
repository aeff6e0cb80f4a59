"""`freezetrain forgetting` on two models and their base, one of another tokenizer."""

import csv
import json
import math
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from freezetrain.cli import main
from freezetrain.data.texts import read_languages
from freezetrain.errors import CheckError, UserError
from freezetrain.measuring import forgetting as job
from freezetrain.measuring import written
from freezetrain.measuring.recipe import Benchmarks, ForgettingRecipe
from freezetrain.models import load_model, load_tokenizer
from freezetrain.recipe.sources import EvaluationTexts, ModelSource, TextSource
from freezetrain.tables import Table

WATCHED = ["en", "es", "zh"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_model, tokenizer, udhr):
    """base; run/model, its weights shifted; other, of 300 other tokens and 64 places."""
    root = tmp_path_factory.mktemp("models")
    base, adapted = make_model(), make_model()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in adapted.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(list(udhr["es"].train), trainer)
    small = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>")
    other = make_model(1, vocab_size=300, max_position_embeddings=64)
    for name, model, of in (
        ("base", base, tokenizer),
        ("run/model", adapted, tokenizer),
        ("other", other, small),
    ):
        model.save_pretrained(root / name)
        of.save_pretrained(root / name)
    return root


def recipe(folders, *names, **more):
    return ForgettingRecipe(
        base=ModelSource(str(folders / "base")),
        models=[ModelSource(str(folders / name)) for name in names],
        **{"target": "zh", "evaluation": EvaluationTexts(languages=WATCHED), **more},
    )


@torch.no_grad()
def nll(folder, text, length):
    """One document at a time, one window at a time; nats in fp64."""
    source = ModelSource(str(folder))
    model, tokenizer = load_model(source), load_tokenizer(source)
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    total, done = 0.0, 0
    while done < len(ids) - 1:
        # As the harness cuts: what is left, from as much context as the model has places for.
        last = min(done + length, len(ids) - 1)
        first = max(0, last - length)
        logs = model(torch.tensor([ids[first:last]])).logits[0].double().log_softmax(-1)
        total -= sum(float(logs[at - first, ids[at + 1]]) for at in range(done, last))
        done = last
    return total


@pytest.fixture(scope="module")
def compared(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return job.run(recipe(folders, "run/model", "other"), out), out


def deltas(change):
    return {name: one["delta_nll_per_byte"] for name, one in change["languages"].items()}


def test_figures_are_those_of_a_plain_loop_over_documents(compared, folders):
    outcome, _ = compared
    texts = {name: one.test for name, one in read_languages(TextSource(), WATCHED).items()}
    for run, folder in zip(outcome.results["runs"], ("run/model", "other"), strict=True):
        assert run["history"]["max_length"] == 64  # the shortest of the three models
        before, after = (one["figures"] for one in run["history"]["evaluations"])
        change = run["history"]["evaluations"][1]["forgetting"]
        for name in ("en", "zh"):
            size = sum(len(text.encode()) for text in texts[name])
            nlls = [
                sum(nll(folders / which, text, 64) for text in texts[name])
                for which in ("base", folder)
            ]
            assert before[name]["nll"] == pytest.approx(nlls[0], rel=1e-6)
            assert after[name]["nll"] == pytest.approx(nlls[1], rel=1e-6)
            delta = (nlls[1] - nlls[0]) / size
            found = {"zh": -change["target_gain"], **deltas(change)}
            assert found[name] == pytest.approx(delta, rel=1e-4)


def test_a_ratio_of_perplexities_only_where_the_tokens_are_the_same(compared):
    same, other = compared[0].results["runs"]
    for run, is_same in ((same, True), (other, False)):
        change = run["history"]["evaluations"][1]["forgetting"]
        assert list(change["languages"]) == ["en", "es"]
        for found in change["languages"].values():
            assert (found["perplexity_ratio"] is not None) == is_same
            low, high = found["interval"]
            assert low < found["delta_nll_per_byte"] < high
            assert found["standard_error"] > 0


def test_tokens_lost_and_won_only_where_the_tokens_are_the_same(compared):
    """Net of each other they are what the number of tokens ranked first has changed by."""
    outcome, out = compared
    same, other = outcome.results["runs"]
    before, after = (one["figures"] for one in same["history"]["evaluations"])
    flips = same["history"]["evaluations"][1]["forgetting"]["flips"]
    assert flips.keys() == {*WATCHED}
    for name, found in flips.items():
        assert found["won"] - found["lost"] == after[name]["correct"] - before[name]["correct"]
        assert 0 < found["lost"] <= before[name]["correct"]
    assert other["history"]["evaluations"][1]["forgetting"]["flips"] == {}
    with (out / "forgetting.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["model"], row["language"]): row for row in csv.DictReader(file)}
    for name, found in flips.items():
        assert (rows["model", name]["lost"], rows["other", name]["lost"]) == (
            str(found["lost"]), ""
        )  # fmt: skip
    tables = {part.title: part for part in outcome.display if isinstance(part, Table)}
    assert "lost: tokens that the base alone ranks first" in tables["model"].note
    assert "not counted: base and model have other tokens" in tables["other"].note
    assert "tokens lost" in (out / "report.html").read_text()


def test_names_texts_and_files(compared, folders):
    outcome, out = compared
    assert outcome.results["base"] == "base"
    same, other = outcome.results["runs"]
    assert [same["name"], other["name"]] == ["model", "other"]
    assert same["settings"]["model's path"] == str(folders / "run/model")
    counts = [{row["language"]: row["tokens"] for row in run["texts"]} for run in (same, other)]
    assert counts[0].keys() == counts[1].keys() == {*WATCHED}
    assert counts[0] != counts[1]
    json.dumps(outcome.results, allow_nan=False)
    with (out / "forgetting.csv").open() as file:
        rows = {(row["model"], row["language"]): row for row in csv.DictReader(file)}
    change = other["history"]["evaluations"][1]["forgetting"]["languages"]["es"]
    assert float(rows["other", "es"]["delta_nll_per_byte"]) == change["delta_nll_per_byte"]
    assert rows["other", "es"]["perplexity_ratio"] == ""
    markdown = (out / "forgetting.md").read_text()
    assert "| other | zh (target) |" in markdown
    page = (out / "report.html").read_text()
    assert "other" in page
    assert "<table" in page
    assert not (out / "benchmarks.csv").exists()


def test_the_csv_holds_every_model_and_language(compared):
    """As Python's csv module reads it, each number is that of results.json, in full."""
    outcome, out = compared
    with (out / "forgetting.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["model"], row["language"]): row for row in csv.DictReader(file)}
    assert rows.keys() == {(m, one) for m in ("model", "other") for one in (*WATCHED, "mean")}
    roles = {key: row["role"] for key, row in rows.items()}
    assert [roles["model", name] for name in (*WATCHED, "mean")] == [
        "held-out", "held-out", "target", "mean"
    ]  # fmt: skip
    for run in outcome.results["runs"]:
        before, after = (one["figures"] for one in run["history"]["evaluations"])
        change = run["history"]["evaluations"][1]["forgetting"]
        low, high = change["target_gain_interval"]
        told = {
            name: (one["delta_nll_per_byte"], *one["interval"])
            for name, one in change["languages"].items()
        }
        told |= {
            "zh": (-change["target_gain"], -high, -low),
            "mean": (change["mean"], *change["mean_interval"]),
        }
        for name, numbers in told.items():
            row = rows[run["name"], name]
            found = [row[k] for k in ("delta_nll_per_byte", "interval_low", "interval_high")]
            assert [float(text) for text in found] == list(numbers)
            assert row["failed"] == ""
            if name != "mean":
                assert float(row["base_nll_per_byte"]) == before[name]["nll_per_byte"]
                assert float(row["nll_per_byte"]) == after[name]["nll_per_byte"]
                assert int(row["documents"]) == after[name]["documents"]


def test_a_fixed_sample_of_documents(folders, tmp_path):
    texts = TextSource(key_field="section", test_one_in=1)
    told = EvaluationTexts(texts, languages=["en", "es"], documents=3)
    outcome = job.run(recipe(folders, "run/model", target=None, evaluation=told), tmp_path)
    (run,) = outcome.results["runs"]
    assert [row["documents"] for row in run["texts"]] == [3, 3]
    sample = read_languages(TextSource(test_one_in=1), ["en"])["en"].test.sample(3)
    assert run["texts"][0]["bytes"] == sum(len(text.encode()) for text in sample)


def test_revisions_of_one_model_are_told_apart(folders, tmp_path):
    told = recipe(folders, "run/model", "base", "base")
    told.evaluation.languages = ["en", "zh"]
    for number, revision in ((1, "step1000"), (2, "step2000")):  # a folder's has no meaning
        told.models[number].revision = revision
    outcome = job.run(told, tmp_path)
    names = [run["name"] for run in outcome.results["runs"]]
    assert names == ["model", "base@step1000", "base@step2000"]
    with (tmp_path / "forgetting.csv").open() as file:
        assert {row["model"] for row in csv.DictReader(file)} == {*names}


@pytest.fixture(scope="module")
def damaged(folders, make_model, tokenizer, tmp_path_factory):
    """nan, whose losses are no numbers; cut, a file that ends early; lacking, without a weight."""
    root = tmp_path_factory.mktemp("damaged")
    broken = make_model()
    with torch.no_grad():
        next(broken.parameters()).fill_(math.nan)
    for part in (broken, tokenizer):
        part.save_pretrained(root / "nan")
    for name in ("cut", "lacking"):
        shutil.copytree(folders / "base", root / name)
    cut = root / "cut" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1000])
    weights = load_file(root / "lacking" / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, root / "lacking" / "model.safetensors", {"format": "pt"})
    return root


def test_a_model_that_fails_is_recorded_and_the_others_go_on(
    folders, compared, damaged, tmp_path, capsys
):
    broken = ["nan", "cut", "lacking"]
    command = [
        "forgetting", folders / "base", damaged / "nan", folders / "run/model", damaged / "cut",
        damaged / "lacking", "--target", "zh", "--evaluation.languages", "[en, es, zh]",
        "--evaluation.max_length", 64, "--out", tmp_path / "out",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in command])
    assert stopped.value.code == 1
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["passed"] is False
    alone = json.loads(json.dumps(compared[0].results["runs"][0]))
    assert results["runs"] == [alone]  # as without the others
    assert list(results["failed"]) == broken
    assert results["failed"]["nan"].startswith("the summed NLL of language 'en' is nan, not a")
    assert "model.safetensors" in results["failed"]["cut"]
    assert "model.norm.weight" in results["failed"]["lacking"]
    with (tmp_path / "out" / "forgetting.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    without = {row["model"]: row for row in rows if row["failed"]}
    assert {name: row["failed"] for name, row in without.items()} == results["failed"]
    for row in without.values():
        assert {name for name, value in row.items() if value} == {"model", "failed"}
    assert {row["model"] for row in rows} - {*without} == {"model"}
    page = (tmp_path / "out" / "report.html").read_text()
    said = capsys.readouterr().out
    for text in (page, said, (tmp_path / "out" / "forgetting.md").read_text()):
        assert "Models that could not be measured" in text
        assert all(name in text for name in broken)


@pytest.fixture
def texts(udhr, tmp_path):
    """A folder of the first articles in two languages, all held out."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("en", "zh"):
        few = [json.dumps({"text": text}) + "\n" for text in list(udhr[name].test)[:3]]
        (folder / f"{name}.jsonl").write_text("".join(few))
    return folder


@pytest.fixture
def measure(folders, texts, tmp_path, monkeypatch):
    """The verb in the folder out: its status, and which models it evaluated."""
    evaluated = []
    real = job.evaluate_with_bar
    monkeypatch.setattr(
        job, "evaluate_with_bar", lambda *rest: evaluated.append(rest[3]) or real(*rest)
    )

    def measured(*words, base=folders / "base", out="out"):
        evaluated.clear()
        settings = ["--evaluation.texts.folder", texts, "--evaluation.texts.test_one_in", 1]
        command = ["forgetting", base, *words, "--target", "zh", *settings, "--out", tmp_path / out]
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in command])
        return stopped.value.code, [*evaluated]

    return measured


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_models_added_later_stand_beside_the_earlier_ones(folders, measure, tmp_path, capsys):
    first, out = tmp_path / "first", tmp_path / "out"
    shutil.copytree(folders / "run/model", first)
    shutil.copytree(folders / "base", tmp_path / "second")
    assert measure(first) == (0, ["base", "first"])
    shutil.move(first, tmp_path / "elsewhere")  # what was measured is no longer needed
    capsys.readouterr()
    assert measure(tmp_path / "second") == (0, ["second"])
    said = capsys.readouterr().out
    assert "first" in said
    assert "second" in said
    results = json.loads((out / "results.json").read_text())
    shutil.move(tmp_path / "elsewhere", first)
    assert measure(first, tmp_path / "second", out="together")[0] == 0
    together = json.loads((tmp_path / "together" / "results.json").read_text())
    assert results == together
    for name in ("forgetting.csv", "forgetting.md", "report.html", "recipe.yaml"):
        assert (out / name).read_text() == (tmp_path / "together" / name).read_text()
    before = contents(out)
    assert measure(first) == (0, [])  # nothing new: it is finished
    assert contents(out) == before


def results_of(out):
    return json.loads((out / "results.json").read_text())


def test_a_model_that_was_trained_further_is_measured_anew(folders, measure, tmp_path, capsys):
    """Also with the same command; what only looks new, or is no part of the model, is not."""
    model, out, kept = tmp_path / "first", tmp_path / "out", tmp_path / "out/measured/0.json"
    shutil.copytree(folders / "run/model", model)
    assert measure(model) == (0, ["base", "first"])
    before = contents(out)
    os.utime(model / "model.safetensors")
    (model / "README.md").write_text("a card")
    assert measure(model) == (0, [])
    assert contents(out) == before
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    assert measure(model) == (0, ["first"])
    assert "first: its files have changed since it was measured" in capsys.readouterr().out
    assert measure(model) == (0, [])
    assert measure(model, out="fresh")[0] == 0
    assert results_of(out) == results_of(tmp_path / "fresh")
    assert contents(out)[out / "forgetting.csv"] != before[out / "forgetting.csv"]
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(b"damaged")
    assert measure(model) == (1, [])
    assert "first" in results_of(out)["failed"]
    (model / "model.safetensors").write_bytes(whole)
    assert measure(model) == (0, [])  # its figures were kept
    assert results_of(out) == results_of(tmp_path / "fresh")
    earlier = json.loads(kept.read_text())
    del earlier["files"]
    kept.write_text(json.dumps(earlier))
    shutil.rmtree(model)
    shutil.copytree(folders / "run/model", model)
    assert measure(model) == (0, [])


def test_a_changed_model_beside_bad_input_changes_nothing(folders, measure, tmp_path):
    model, out = tmp_path / "first", tmp_path / "out"
    shutil.copytree(folders / "run/model", model)
    assert measure(model)[0] == 0
    before = contents(out)
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    tokenizer = out.with_name("first") / "config.json"
    other = json.loads(tokenizer.read_text()) | {"max_position_embeddings": 32}
    tokenizer.write_text(json.dumps(other))
    assert measure(model)[0] == 2
    assert contents(out) == before


def test_the_page_has_the_last_models_that_can_be_told_apart(
    compared, folders, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    shutil.copytree(compared[1], out)
    monkeypatch.setattr(written, "MOST", 1)
    monkeypatch.setattr(job, "evaluate_with_bar", None)  # all is kept
    told = recipe(folders, "run/model", "other")
    outcome = job.run(told, out)
    assert outcome.results == compared[0].results
    assert outcome.display[-1] == f"report: {out / 'report.html'}, of the last 1 of 2 models"
    page = (out / "report.html").read_text()
    assert "“other”" in page
    assert "“model”" not in page
    for name in ("base", "1"):
        (out / "measured" / f"{name}.json").write_text("{}")
        with pytest.raises(UserError, match=rf"measured/{name}\.json: .*; delete the file"):
            job.run(told, out)
        shutil.copy(compared[1] / "measured" / f"{name}.json", out / "measured")


def test_a_model_that_failed_is_tried_again(folders, damaged, measure, tmp_path):
    model = tmp_path / "adapted"
    shutil.copytree(damaged / "cut", model)
    assert measure(model, folders / "run/model") == (1, ["base", "model"])
    shutil.rmtree(model)
    shutil.copytree(folders / "run/model", model)
    assert measure(model, folders / "run/model") == (0, ["adapted"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [run["name"] for run in results["runs"]] == ["adapted", "model"]
    assert results["failed"] == {}


def test_another_base_other_texts_or_settings_are_refused(
    folders, make_model, tokenizer, measure, texts, tmp_path, capsys
):
    base, new = tmp_path / "base", tmp_path / "new"
    shutil.copytree(folders / "base", base)
    shutil.copytree(folders / "base", new)
    assert measure(folders / "run/model", base=base)[0] == 0
    before = contents(tmp_path / "out")

    def refused(*words, said, base=base):
        capsys.readouterr()
        assert measure(*words, base=base) == (2, [])
        assert said in capsys.readouterr().err
        assert contents(tmp_path / "out") == before

    refused(new, base=folders / "base", said="with another base.path")
    refused(new, "--evaluation.overlap", 2, said="with another evaluation.overlap")
    refused(folders / "other", said="measured in windows of 128 tokens, and other was built for 64")
    refused(tmp_path / "nwe", said="no such folder")
    english = (texts / "en.jsonl").read_text()
    (texts / "en.jsonl").write_text(english.replace("a", "e"))
    refused(new, said="others of en (their texts changed")
    (texts / "en.jsonl").write_text(english)
    shutil.copy(folders / "run/model/model.safetensors", base)  # trained further in its place
    refused(new, said="got other weights")


def test_all_models_failed(folders, damaged, tmp_path):
    outcome = job.run(recipe(folders, damaged / "cut"), tmp_path)
    assert not outcome.passed
    assert outcome.results["runs"] == []
    assert list(outcome.results["failed"]) == ["cut"]
    assert not (tmp_path / "report.html").exists()
    assert "cut" in (tmp_path / "forgetting.csv").read_text()


def test_a_base_that_fails_leaves_nothing_to_compare(folders, damaged, tmp_path):
    for name, error, said in (
        ("nan", CheckError, "^nan: the summed NLL of language 'en' is nan"),
        ("cut", UserError, "model.safetensors"),
    ):
        told = recipe(folders, "run/model")
        told.base.path = str(damaged / name)
        with pytest.raises(error, match=said):
            job.run(told, tmp_path)
    assert not any(tmp_path.iterdir())


CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["of all", "to the law", "no"]
doc_to_target: answer
num_fewshot: 1
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture
def tasks(tmp_path):
    pytest.importorskip("lm_eval", reason="the extra benchmarks is not installed")
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"Article {n} says that", "answer": n % 3} for n in range(12)]
    (folder / "data.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "choice.yaml").write_text(CHOICE.format(data=folder / "data.json"))
    return folder


def test_benchmarks_beside_the_languages(folders, tasks, tmp_path, capsys):
    command = [
        "forgetting", folders / "base", folders / "run/model", folders / "other",
        "--evaluation.languages", "[en]", "--benchmarks.tasks", "[local_choice]",
        "--benchmarks.folder", tasks, "--benchmarks.metrics", "{local_choice: acc_norm}",
        "--out", tmp_path / "out",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in command])
    assert stopped.value.code == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    with (tmp_path / "out" / "benchmarks.csv").open() as file:
        rows = {(row["model"], row["metric"]): row for row in csv.DictReader(file)}
    assert len(rows) == 4
    for run in results["runs"]:
        task = run["benchmarks"]["tasks"]["local_choice"]
        assert task["metric"] == "acc_norm"
        base, (name, found) = task["base"]["value"], *task["models"].items()
        assert name == run["name"]
        assert 0 < base < 1
        drop = (base - found["value"]) / base
        assert found["relative_drop"] == pytest.approx(drop)
        assert run["benchmarks"]["mean_relative_drop"] == {name: pytest.approx(drop)}
        row = rows[name, "acc_norm"]
        assert (float(row["value"]), row["counts"]) == (found["value"], "True")
        assert rows[name, "acc"]["counts"] == "False"
        assert not math.isnan(float(row["standard_error"]))
        assert (row["num_fewshot"], task["num_fewshot"]) == ("1", 1)
    assert "local_choice" in (tmp_path / "out" / "forgetting.md").read_text()
    assert "local_choice" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "more", "complaint"),
    [
        (["other"], {"target": "zhh"}, r"target 'zhh' is not among.*did you mean 'zh'"),
        (["other", "other"], {}, "each model once, got other twice"),
        (["base"], {}, "each model once, got base twice"),
        (["nowhere"], {}, "there is no such folder"),
        (
            ["other"],
            {"evaluation": EvaluationTexts(max_length=100)},
            "max_length is 100 tokens and the model was built for 64",
        ),
        (["other"], {"benchmarks": Benchmarks(["x"], folder="gone")}, "there is no such folder"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_a_model_is_run(
    folders, tmp_path, monkeypatch, names, more, complaint
):
    monkeypatch.setattr(job, "evaluate_with_bar", None)
    with pytest.raises(UserError, match=complaint):
        job.run(recipe(folders, *names, **more), tmp_path)


def test_no_model_to_compare():
    with pytest.raises(UserError, match="models must be one or more"):
        ForgettingRecipe(base=ModelSource("x"), models=[])
    with pytest.raises(SystemExit) as stopped:
        main(["forgetting", "x"])
    assert stopped.value.code == 2
