"""The verbs one after another on a tiny model, through the command line, as a user would."""

import json
import math
import shutil

import pytest
import torch
import yaml
from plain_loss import plain_documents, plain_figures
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from verbs import freezetrain, results

from freezetrain.data.texts import read_languages
from freezetrain.recipe.sources import TextSource
from freezetrain.regions import Region

RECIPE = {
    "languages": ["zh"],
    "optimization": {
        "max_steps": 6,
        "sequence_length": 32,
        "micro_batch": 2,
        "batch_tokens": 128,
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "warmup_steps": 1,
    },
    "watch": {"languages": ["en", "zh"], "every_n_steps": 3, "max_length": 64},
    "checkpoint_every": 3,
}


@pytest.fixture(scope="module")
def done(tmp_path_factory, model_folder):
    """A folder in which score, select and train have run."""
    folder = tmp_path_factory.mktemp("pipeline")
    assert freezetrain(
        "score", "--model", model_folder, "--languages", "[en,es]", "--sequence_length", 32,
        "--sequences", 12, "--out", folder / "scores",
    ) == 0  # fmt: skip
    assert (
        freezetrain(
            "select", "--scores", folder / "scores", "--ratio", 0.05, "--out", folder / "core"
        )
        == 0
    )
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump(
            {
                **RECIPE,
                "model": {"path": str(model_folder)},
                "region": str(folder / "core" / "region.safetensors"),
            }
        )
    )
    assert freezetrain("train", folder / "recipe.yaml", "--out", folder / "run") == 0
    return folder


def test_selected_region_is_the_top_of_the_summed_scores(done):
    region = Region.load(done / "core" / "region.safetensors")
    assert results(done / "core")["entries"] == region.count
    files = [load_file(done / "scores" / f"{name}.safetensors") for name in ("en", "es")]
    for name in region.names:
        total = files[0][name] + files[1][name]  # equally many batches: the plain sum
        count = int(0.05 * total.numel() + 0.5)
        wanted = total.flatten().argsort(descending=True, stable=True)[:count]
        assert region.indices(name).tolist() == sorted(wanted.tolist())
        assert "norm" not in name


def test_training_moved_everything_but_the_region(done, model_folder):
    base = load_file(model_folder / "model.safetensors")
    adapted = load_file(done / "run" / "model" / "model.safetensors")
    masks = Region.load(done / "core" / "region.safetensors").masks()
    for name, before in base.items():
        frozen = masks.get(name, torch.zeros(before.shape, dtype=torch.bool))
        assert torch.equal(before[frozen], adapted[name][frozen])
    weight = "model.layers.0.mlp.up_proj.weight"
    moved = (base[weight] != adapted[weight])[~masks[weight]]
    assert moved.float().mean() > 0.99


def test_training_says_what_it_did(done):
    said = results(done / "run")
    assert said["steps"] == 6
    assert said["resumed_from"] is None
    assert said["data"]["zh"]["documents"] == len(read_languages(TextSource(), ["zh"])["zh"].train)
    course = json.loads((done / "run" / "forgetting.json").read_text(encoding="utf-8"))
    assert [evaluation["step"] for evaluation in course["evaluations"]] == [0, 3, 6]
    assert said["forgetting"] == course["evaluations"][-1]["forgetting"]
    base = course["evaluations"][0]["figures"]
    assert [row["language"] for row in said["texts"]] == list(base)
    for row in said["texts"]:
        for name in ("documents", "bytes", "tokens"):
            assert row[name] == base[row["language"]][name]
    assert said["forgetting"]["target"] == "zh"
    assert said["forgetting"]["target_gain"] > 0
    assert list((done / "run" / "tensorboard").glob("events*"))


def test_reported_nll_equals_a_plain_loop_over_the_exported_model(done, tokenizer):
    course = json.loads((done / "run" / "forgetting.json").read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(done / "run" / "model")
    languages = read_languages(TextSource(), ["en", "zh"])
    documents = {name: plain_documents(texts.test, tokenizer) for name, texts in languages.items()}
    for language, (nll, tokens, size) in plain_figures(model, documents, 64).items():
        figures = course["evaluations"][-1]["figures"][language]
        assert (figures["tokens"], figures["bytes"]) == (tokens, size)
        assert math.isclose(figures["nll"], nll, rel_tol=1e-5)


def test_same_recipe_again_resumes_and_says_that_it_is_done(done, capsys):
    before = (done / "run" / "model" / "model.safetensors").read_bytes()
    assert freezetrain("train", done / "recipe.yaml", "--out", done / "run") == 0
    assert "finished" in capsys.readouterr().out
    assert (done / "run" / "model" / "model.safetensors").read_bytes() == before


@pytest.mark.exhaustive
@pytest.mark.parametrize("lost", [["results.json"], ["results.json", "model"]])
def test_killed_after_the_last_step(done, tmp_path, lost):
    run = tmp_path / "run"
    shutil.copytree(done / "run", run)
    for name in lost:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert freezetrain("train", done / "recipe.yaml", "--out", run) == 0
    said = results(run)
    assert said["resumed_from"] == "step=6.ckpt"
    assert said["final_loss"] is None
    assert said["forgetting"] == results(done / "run")["forgetting"]
    again, before = (
        load_file(folder / "model" / "model.safetensors") for folder in (run, done / "run")
    )
    assert all(torch.equal(again[name], value) for name, value in before.items())


def test_another_recipe_in_the_same_folder_is_refused(done, capsys):
    code = freezetrain(
        "train", done / "recipe.yaml", "--optimization.max_steps", 9, "--out", done / "run"
    )
    assert code == 2
    assert "holds another run, with another optimization.max_steps" in capsys.readouterr().err
    assert results(done / "run")["steps"] == 6


def test_verify_says_yes(done, model_folder, capsys):
    region = done / "core" / "region.safetensors"
    code = freezetrain(
        "verify", model_folder, done / "run" / "model", region, "--out", done / "yes"
    )
    assert code == 0
    count = Region.load(region).count
    assert f"{count:,} frozen entries are bit-identical" in capsys.readouterr().out
    assert results(done / "yes")["checked"] == count


def test_verify_says_no_and_names_the_entry(done, model_folder, tmp_path, capsys):
    region = Region.load(done / "core" / "region.safetensors")
    model = AutoModelForCausalLM.from_pretrained(done / "run" / "model")
    name = region.names[3]
    index = int(region.indices(name)[2])
    flat = model.get_parameter(name).data.view(-1)
    flat.view(torch.int32)[index] ^= 1  # the lowest bit of one frozen entry
    model.save_pretrained(tmp_path / "tampered")
    code = freezetrain(
        "verify", model_folder, tmp_path / "tampered", done / "core" / "region.safetensors",
        "--out", tmp_path / "no",
    )  # fmt: skip
    assert code == 1
    said = results(tmp_path / "no")
    assert (said["passed"], said["moved"]) == (False, 1)
    assert [(o["name"], o["index"]) for o in said["offenders"]] == [(name, index)]
    assert f"1 of {region.count:,} frozen entries moved" in capsys.readouterr().out


def test_ablate_evaluates_regions_beside_random_ones(done, model_folder, tmp_path):
    code = freezetrain(
        "ablate", "--model", model_folder, "--regions", f"[{done}/core/region.safetensors]",
        "--scores", done / "scores", "--ratios", "[0.05]", "--which", "[top,random]",
        "--evaluation.languages", "[en,zh]", "--random_seeds", "[0,1]", "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0
    said = results(tmp_path / "out")
    assert list(said["figures"]) == [
        "nothing", "region", "random like region, seed 0", "random like region, seed 1",
        "top 5%", "random 5%, seed 0", "random 5%, seed 1",
    ]  # fmt: skip
    assert len({facts["entries"] for facts in said["regions"].values()}) == 1
    assert said["figures"]["top 5%"] == said["figures"]["region"], "the same entries, of a file"
    nothing, region = said["figures"]["nothing"]["en"], said["figures"]["region"]["en"]
    assert nothing["tokens"] == region["tokens"]
    assert nothing["nll"] != region["nll"]


def compared(folder):
    """What `freezetrain forgetting` says of its only model."""
    (run,) = results(folder)["runs"]
    return run["history"]["evaluations"][-1]["forgetting"]


def test_forgetting_compares_two_models(done, model_folder, tmp_path):
    code = freezetrain(
        "forgetting", model_folder, done / "run" / "model", "--target", "zh",
        "--evaluation.languages", "[en,zh]", "--evaluation.max_length", 64,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0
    found = compared(tmp_path / "out")
    expected = results(done / "run")["forgetting"]
    assert found["mean"] == pytest.approx(expected["mean"], rel=1e-4)
    assert found["target_gain"] == pytest.approx(expected["target_gain"], rel=1e-4)


@pytest.mark.parametrize(
    ("path", "kind"), [("scores/en.safetensors", "scores"), ("core/region.safetensors", "region")]
)
def test_info_on_files(done, tmp_path, path, kind):
    assert freezetrain("info", done / path, "--out", tmp_path / "out") == 0
    assert results(tmp_path / "out")["kind"] == kind


def test_info_on_a_model(model_folder, model, tmp_path):
    assert freezetrain("info", model_folder, "--out", tmp_path / "out") == 0
    said = results(tmp_path / "out")
    assert said["parameters"] == sum(p.numel() for p in model.parameters())
    assert said["decoder_blocks"] == ["model.layers.0", "model.layers.1"]
    assert said["norms"] == 4 * 16
    assert said["embeddings"] == {"input": "model.embed_tokens.weight", "output": "lm_head.weight"}


@pytest.mark.parametrize(
    "more",
    [
        ("--kind", "random", "--like", "{done}/core/region.safetensors", "--seed", 4),
        ("--kind", "monolingual", "--scores", "{done}/scores", "--language", "en"),
        ("--kind", "vocabulary", "--model", "{model}", "--language", "zh"),
        ("--scores", "{done}/scores", "--which", "bottom", "--per", "model", "--norms", "true"),
        ("--scores", "{done}/scores", "--unit", "column", "--ratio", 0.5),
    ],
)
def test_other_kinds_of_regions(done, model_folder, tmp_path, more):
    words = [str(word).format(done=done, model=model_folder) for word in more]
    assert freezetrain("select", *words, "--out", tmp_path / "out") == 0
    region = Region.load(tmp_path / "out" / "region.safetensors")
    assert region.count == results(tmp_path / "out")["entries"] > 0


@pytest.mark.exhaustive
def test_several_languages_trained_on_are_not_held_out(model_folder, tmp_path):
    code = freezetrain(
        "train", "--model", model_folder, "--languages", "[en,zh]", "--optimization.max_steps", 1,
        "--optimization.sequence_length", 32, "--watch.languages", "[en,es,zh]",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0
    found = results(tmp_path / "out")["forgetting"]
    assert list(found["languages"]) == ["es"]
    assert found["target"] is None


@pytest.mark.exhaustive
def test_a_run_whose_time_is_used_up_at_once_is_finished_all_the_same(model_folder, tmp_path):
    code = freezetrain(
        "train", "--model", model_folder, "--languages", "[zh]", "--optimization.max_steps", 2,
        "--optimization.sequence_length", 32, "--optimization.max_hours", 1e-9,
        "--watch.languages", "[en,zh]", "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0
    assert results(tmp_path / "out")["steps"] == 0
    assert not (tmp_path / "out" / "report.html").exists(), "there is only the base to show"


@pytest.mark.exhaustive
def test_equal_documents_under_two_keys_are_no_obstacle(model_folder, text_folder, tmp_path):
    """Real corpora hold a few; 1 of 154 held-out pages of one that this was tried on."""
    rows = [
        json.dumps({"section": f"{n}", "text": "the same text, again and again " * 3})
        for n in range(60)
    ]
    (text_folder / "en.jsonl").write_text("\n".join(rows), encoding="utf-8")
    source = ("folder", text_folder), ("key_field", "section")
    options = [
        word
        for part in ("texts", "watch.texts")
        for name, value in source
        for word in (f"--{part}.{name}", value)
    ]
    code = freezetrain(
        "train", "--model", model_folder, "--languages", "[en]", "--optimization.max_steps", 1,
        "--optimization.sequence_length", 32, *options, "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0


@pytest.mark.exhaustive
def test_pre_training_from_a_configuration_alone(model_folder, tmp_path):
    code = freezetrain(
        "train", "--model", model_folder, "--from_scratch", "true", "--languages", "[en]",
        "--optimization.max_steps", 2, "--optimization.sequence_length", 32, "--watch.off", "true",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0
    made = load_file(tmp_path / "out" / "model" / "model.safetensors")
    old = load_file(model_folder / "model.safetensors")
    assert made.keys() == old.keys()
    assert not torch.equal(made["lm_head.weight"], old["lm_head.weight"])


def test_clamped_training(done, model_folder, tmp_path, capsys):
    region = done / "core" / "region.safetensors"
    code = freezetrain(
        "train", done / "recipe.yaml", "--freeze.clamp", 0, "--optimization.max_steps", 2,
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert code == 0
    count = f"{Region.load(region).count:,}"
    assert f"{count} entries set to 0 and frozen" in capsys.readouterr().out
    course, plain = (
        json.loads((folder / "forgetting.json").read_text(encoding="utf-8"))
        for folder in (tmp_path / "run", done / "run")
    )
    # Forgetting is counted from the base as it was, not from the clamped one.
    assert course["evaluations"][0] == plain["evaluations"][0]
    words = "verify", model_folder, tmp_path / "run" / "model", region
    assert freezetrain(*words, "--clamp", 0, "--out", tmp_path / "yes") == 0
    assert f"{count} frozen entries are bit-identical" in capsys.readouterr().out
    assert freezetrain(*words, "--out", tmp_path / "no") == 1


def test_verify_says_where_only_rounding_moved_entries(done, model_folder, tmp_path, capsys):
    model = AutoModelForCausalLM.from_pretrained(done / "run" / "model").bfloat16()
    model.save_pretrained(tmp_path / "rounded")
    words = "verify", model_folder, tmp_path / "rounded", done / "core" / "region.safetensors"
    assert freezetrain(*words, "--out", tmp_path / "no") == 1
    assert "--rounded_to bfloat16 accepts that" in capsys.readouterr().out
    said = results(tmp_path / "no")
    assert said["moved"] > 0
    assert said["rounded_to"] == "bfloat16"
    assert freezetrain(*words, "--rounded_to", "bfloat16", "--out", tmp_path / "yes") == 0


def test_freeze_without_a_region_is_refused(model_folder, tmp_path, capsys):
    code = freezetrain(
        "train", "--model", model_folder, "--freeze.clamp", 0, "--out", tmp_path / "out"
    )
    assert code == 2
    assert "freeze must be left out where no region is given" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_averaged_weights_are_exported_and_evaluated(done, model_folder, tmp_path):
    code = freezetrain(
        "train", done / "recipe.yaml", "--optimization.ema_decay", 0.5, "--out", tmp_path / "run",
    )  # fmt: skip
    assert code == 0
    said, plain = results(tmp_path / "run"), results(done / "run")
    assert said["forgetting"] == plain["forgetting"]
    code = freezetrain(
        "forgetting", model_folder, tmp_path / "run" / "model", "--target", "zh",
        "--evaluation.languages", "[en,zh]", "--evaluation.max_length", 64,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0
    found = compared(tmp_path / "out")
    assert found["mean"] == pytest.approx(said["forgetting_of_average"]["mean"], rel=1e-4)
    assert found["mean"] != pytest.approx(plain["forgetting"]["mean"], rel=1e-2)
    region = done / "core" / "region.safetensors"
    words = "verify", model_folder, tmp_path / "run" / "model", region
    assert freezetrain(*words, "--out", tmp_path / "yes") == 0
