"""The whole main job on a tiny model and three languages: every file, every figure consistent."""

import math
from pathlib import Path

import pytest
import torch
import verbs
from plain_loss import plain_documents, plain_figures
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from verbs import freezetrain

from freezetrain.data.texts import BUILT_IN, read_languages
from freezetrain.freezing import compare_checkpoints
from freezetrain.recipe.sources import BUILT_IN_MODEL, TextSource, model_place
from freezetrain.regions import Region


@pytest.fixture(scope="module")
def done(tmp_path_factory, model_folder):
    """The folder that quickstart left."""
    folder = tmp_path_factory.mktemp("quickstart") / "out"
    texts = tmp_path_factory.mktemp("texts")
    for language in ("en", "es", "zh"):
        (texts / f"{language}.jsonl").write_bytes((BUILT_IN / f"{language}.jsonl").read_bytes())
    arguments = [
        "quickstart", "--model", model_folder, "--texts", texts, "--texts.key_field", "section",
        "--score_languages", "[en,es]", "--ratio", 0.05, "--steps", 6, "--learning_rate", 0.01,
        "--sequence_length", 64, "--seeds", 2, "--out", folder,
    ]  # fmt: skip
    assert freezetrain(*arguments) == 0
    return folder


@pytest.fixture(scope="module")
def results(done):
    return verbs.results(done)


def test_it_leaves_all_that_it_promises(done):
    found = {path.name for path in done.iterdir()}
    assert found == {
        "recipe.yaml", "report.html", "results.json", "scores", "core.safetensors",
        "core-and-vocabulary.safetensors", "plain", "core", "core-and-vocabulary",
        "plain-seed1", "core-seed1", "core-and-vocabulary-seed1",
    }  # fmt: skip
    for run in ("plain", "core", "core-and-vocabulary"):
        AutoModelForCausalLM.from_pretrained(done / run / "model")
        AutoTokenizer.from_pretrained(done / run / "model")
        assert list((done / run / "tensorboard").glob("events*"))
    page = (done / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 4
    assert "http://" not in page
    assert "https://" not in page


def test_frozen_means_frozen_and_plain_means_plain(done, results, model_folder):
    for run, file in (("core", "core"), ("core-and-vocabulary", "core-and-vocabulary")):
        region = Region.load(done / f"{file}.safetensors")
        compared = compare_checkpoints(model_folder, done / run / "model", region)
        assert (compared.checked, compared.moved) == (region.count, 0)
    core = Region.load(done / "core.safetensors")
    plain = compare_checkpoints(model_folder, done / "plain" / "model", core)
    assert plain.moved == results["runs"]["plain"]["verify"]["moved"] > 0


def test_ablation_is_that_of_the_region_file(done, results, model_folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    masks = Region.load(done / "core.safetensors").masks()
    weights = load_file(model_folder / "model.safetensors")
    model.load_state_dict(
        {
            name: torch.where(masks[name], 0.0, value) if name in masks else value
            for name, value in weights.items()
        }
    )
    documents = {"es": plain_documents(read_languages(TextSource(), ["es"])["es"].test, tokenizer)}
    nll, _, _ = plain_figures(model, documents, 128)["es"]
    assert math.isclose(results["ablation"]["core"]["es"]["nll"], nll, rel_tol=1e-5)


def test_repeats_differ_by_data_order_alone(done, results):
    for name, run in results["runs"].items():
        (repeat,) = run["repeats"]
        assert (run["seed"], repeat["seed"]) == (0, 1)
        assert run["evaluations"][0] == repeat["evaluations"][0]
        assert run["evaluations"][-1] != repeat["evaluations"][-1]
        assert repeat["verify"]["moved"] == 0 or name == "plain"
    assert not (done / "core-seed1" / "model").exists()


def test_runs_start_from_the_same_base(results):
    starts = [run["evaluations"][0]["figures"] for run in results["runs"].values()]
    assert starts[0] == starts[1] == starts[2]
    assert [e["step"] for e in results["runs"]["plain"]["evaluations"]] == list(range(7))


def test_observations_follow_from_the_figures(results):
    seen = {o["claim"]: o for o in results["observations"]}
    frozen = seen["Frozen entries stayed bit-identical through training"]
    assert frozen["holds"]
    rises = {
        name: [
            after["nll_per_byte"] - before["nll_per_byte"]
            for before, after in zip(
                results["ablation"]["nothing"].values(), figures.values(), strict=True
            )
        ]
        for name, figures in results["ablation"].items()
    }
    core = seen["Zeroing the core region hurts every language more than a random region"]
    assert core["holds"] == all(c > r for c, r in zip(rises["core"], rises["random"], strict=True))
    assert f"{sum(rises['core']) / 3:+.3f}" in core["seen"]


def test_a_folder_with_something_in_it_is_refused(done, model_folder, capsys):
    before = sorted(path.name for path in done.iterdir())
    assert freezetrain("quickstart", "--model", model_folder, "--out", done) == 2
    assert "is not empty" in capsys.readouterr().err
    assert sorted(path.name for path in done.iterdir()) == before


def test_unknown_target_is_refused(tmp_path, capsys):
    assert freezetrain("quickstart", "--target", "zhh", "--out", tmp_path / "out") == 2
    assert "did you mean 'zh'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_built_in_base_is_small_and_whole():
    base = model_place(BUILT_IN_MODEL)
    files = list(Path(base).iterdir())
    assert sum(file.stat().st_size for file in files) < 12e6
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert len(tokenizer) == model.config.vocab_size
    text = "All human beings are born free and equal in dignity and rights."
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
    loss = model(ids, labels=ids).loss.item()
    assert loss < 0.6 * math.log(model.config.vocab_size)  # far better than chance
