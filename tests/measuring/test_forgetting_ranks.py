"""`freezetrain forgetting` on two ranks as on one: figures, failures, models added, tasks."""

import json
import math
import shutil

import pytest
import torch
from forked_ranks import run_ranks
from verbs import freezetrain, on_a_rank, results

from freezetrain.errors import UserError
from freezetrain.measuring.recipe import ForgettingRecipe
from freezetrain.recipe.optimization import Engine
from freezetrain.recipe.sources import ModelSource


@pytest.fixture(scope="module")
def models(tmp_path_factory, make_model, tokenizer):
    """base; near, its weights shifted; nan, whose losses are no numbers."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, shift in (("base", 0.0), ("near", 0.05), ("nan", math.nan)):
        model = make_model()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(shift * torch.randn_like(weight) if shift else 0.0)
        for part in (model, tokenizer):
            part.save_pretrained(root / name)
    return root


@pytest.fixture
def words(models):
    """The command for some models and a folder."""

    def command(*names, out, more=()):
        given = ["forgetting", models / "base", *(models / name for name in names)]
        settings = ["--evaluation.languages", "[en, es, zh]", "--evaluation.documents", 3]
        return [str(w) for w in (*given, "--target", "zh", *settings, *more, "--out", out)]

    return command


def on_two(words, logs=None):
    return run_ranks(on_a_rank, *words, group=False, logs=logs)


def require_equal(found, expected, place=""):
    """To rounding, as other windows stand in a batch."""
    assert type(found) is type(expected), place
    if isinstance(found, dict):
        assert found.keys() == expected.keys(), place
        for key in found:
            require_equal(found[key], expected[key], f"{place}.{key}")
    elif isinstance(found, list):
        assert len(found) == len(expected), place
        for number, pair in enumerate(zip(found, expected, strict=True)):
            require_equal(*pair, f"{place}.{number}")
    elif isinstance(found, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-7), place
    else:
        assert found == expected, place


def test_two_ranks_give_what_one_gives_and_record_the_same_failures(words, tmp_path):
    alone, two, logs = tmp_path / "alone", tmp_path / "two", tmp_path / "logs"
    assert freezetrain(*words("nan", "near", out=alone)) == 1
    assert on_two(words("nan", "near", out=two), logs) == [1, 0]  # the first says it
    require_equal(results(two), results(alone))
    assert list(results(two)["failed"]) == ["nan"]
    assert results(two)["runs"][0]["history"]["evaluations"][1]["forgetting"]["flips"]["en"]["lost"]
    names = sorted(path.name for path in alone.rglob("*") if path.is_file())
    assert sorted(path.name for path in two.rglob("*") if path.is_file()) == names
    for name in ("base", "1"):
        kept = [json.loads((out / "measured" / f"{name}.json").read_text()) for out in (two, alone)]
        require_equal(*kept)
    assert (logs / "1.out").read_text() == ""


@pytest.mark.exhaustive
@pytest.mark.parametrize("documents", [1, 3])
def test_prompts_are_shared_out(documents, words, tmp_path):
    """Also an odd number of them, and each text comes back to its prompt."""
    more = ["--generation.documents", documents, "--generation.new_tokens", 6]
    alone, two = tmp_path / "alone", tmp_path / "two"
    assert freezetrain(*words("near", out=alone, more=more)) == 0
    assert on_two(words("near", out=two, more=more)) == [0, 0]
    require_equal(results(two), results(alone))
    found = results(two)["runs"][0]["generation"]["languages"]
    texts = [one for language in found.values() for one in language["texts"]]
    assert len(texts) == 3 * documents
    assert len({one["prompt"] for one in texts}) == len(texts)
    assert len({one["base"]["text"] for one in texts}) > 1


@pytest.mark.exhaustive
def test_models_added_on_two_ranks_later(words, models, tmp_path):
    """Under torchrun the other rank looks at a folder whose results rank 0 is about to remove."""
    out = tmp_path / "out"
    shutil.copytree(models / "near", models / "second")
    assert on_two(words("near", out=out)) == [0, 0]
    assert on_two(words("second", out=out)) == [0, 0]
    near, second = results(out)["runs"]
    assert (near["name"], second["name"]) == ("near", "second")
    assert near["history"] == second["history"]
    before = (out / "results.json").stat().st_mtime_ns
    assert on_two(words("near", out=out)) == [0, 0]  # it is finished, and no rank waits
    assert (out / "results.json").stat().st_mtime_ns == before
    shutil.rmtree(models / "second")
    shutil.copytree(models / "base", models / "second")  # as if it was trained on under its name
    assert on_two(words("near", out=out)) == [0, 0]
    again, changed = results(out)["runs"]
    assert again == near
    assert changed["history"]["evaluations"][1]["forgetting"]["mean"] == 0


@pytest.mark.exhaustive
def test_what_is_refused_is_refused_by_all(words, tmp_path):
    more = ["--evaluation.max_length", 100_000]
    assert on_two(words("near", out=tmp_path / "out", more=more)) == [2, 2]


@pytest.mark.exhaustive
def test_tasks_are_shared_out(words, tmp_path):
    pytest.importorskip("lm_eval", reason="the extra benchmarks is not installed")
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"Article {n} says that", "answer": n % 2} for n in range(6)]
    (folder / "data.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("first", "second", "third"):
        task = {
            "task": name, "dataset_path": "json", "test_split": "test", "num_fewshot": 1,
            "dataset_kwargs": {"data_files": {"test": str(folder / "data.json")}},
            "output_type": "multiple_choice", "doc_to_text": f"{name}: {{{{question}}}}",
            "doc_to_choice": ["of all", "no"], "doc_to_target": "answer",
            "metric_list": [{"metric": "acc"}],
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    more = ["--benchmarks.folder", folder, "--benchmarks.tasks", "[second, first, third]"]
    alone, two = tmp_path / "alone", tmp_path / "two"
    assert freezetrain(*words("near", out=alone, more=more)) == 0
    assert on_two(words("near", out=two, more=more)) == [0, 0]
    require_equal(results(two), results(alone))
    assert list(results(two)["runs"][0]["benchmarks"]["tasks"]) == ["second", "first", "third"]


@pytest.mark.parametrize(
    ("engine", "complaint"),
    [
        ({"kind": "fsdp2"}, r"engine.kind must be auto or ddp: each device holds the whole model"),
        ({"compile": True}, r"engine.compile must be left out: it is for training"),
        ({"gradient_checkpointing": True}, r"engine.gradient_checkpointing must be left out"),
    ],
)
def test_what_is_for_training_is_refused(engine, complaint):
    models = [ModelSource("x")]
    with pytest.raises(UserError, match=complaint):
        ForgettingRecipe(base=ModelSource("y"), models=models, engine=Engine(**engine))
