"""Bad input: one clear sentence, status 2, no traceback, nothing overwritten."""

import errno
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from freezetrain.cli import main
from freezetrain.cli.verbs import VERBS
from freezetrain.regions import Region


@pytest.fixture
def refused(capsys):
    """Run a command that must be refused; return its sentence."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert stopped.value.code == 2, said
        (line,) = said.err.strip().splitlines()[-1:]
        assert "Traceback" not in said.err
        assert line.startswith("freezetrain: ")
        return line.removeprefix("freezetrain: ")

    return run


@pytest.fixture
def region_file(model, tmp_path):
    path = tmp_path / "region.safetensors"
    Region.random(model, 0.01, seed=0).save(path)
    return path


def train(model_folder, tmp_path, *more):
    return (
        "train", "--model", model_folder, "--languages", "[zh]", "--optimization.max_steps", 2,
        "--optimization.sequence_length", 32, "--watch.off", "true",
        "--out", tmp_path / "out", *more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--kind", "vocabulary", "--model", "x", "--language", "zh", "--unit", "row"),
         "unit must be left out: a vocabulary region does not use it, got 'row'"),
        (("--kind", "monolingual", "--scores", "x", "--language", "zh", "--which", "bottom"),
         "which must be left out"),
        (("--kind", "random",), "like must be given, or else model, to select a random"),
        (("--kind", "random", "--like", "x", "--ratio", 0.5),
         "ratio must be left out: a random region like another does not use it"),
        (("--kind", "random", "--model", "x", "--which", "bottom"), "which must be left out"),
        (("--kind", "layers", "--model", "x"), "first must be 1 or more, or else last"),
        (("--kind", "layers", "--first", -1, "--last", 2), "first must be 0 or more, got -1"),
        (("--kind", "layers", "--last", 2), "model must be given to select a layers region"),
    ],
)  # fmt: skip
def test_options_that_a_kind_of_region_does_not_use(refused, more, complaint):
    assert complaint in refused("select", *more)


def test_new_tokens_come_from_a_file_or_are_learned(refused):
    assert refused("extend", "--model", "x").startswith("tokens must be given, or else learn")
    said = refused("extend", "--model", "x", "--learn", 5)
    assert said.startswith("language must be given to learn tokens")


def test_held_out_documents_that_are_trained_on(refused, tmp_path, model_folder):
    said = refused(
        "train", "--model", model_folder, "--languages", "[zh]", "--texts.test_one_in", 0,
        "--optimization.sequence_length", 32, "--out", tmp_path / "out",
    )  # fmt: skip
    assert "split them by another test_one_in (0 and 4), so that" in said
    assert "held-out documents would be trained on" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--languages", "[zh]", "--watch.texts.test_one_in", 1,
         "--optimization.sequence_length", 32),
        ("score", "--languages", "[zh]", "--sequence_length", 32),
        ("select", "--kind", "vocabulary", "--language", "zh"),
        ("extend", "--learn", 3, "--language", "zh"),
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_texts_that_are_all_held_out_are_not_trained_on(refused, tmp_path, model_folder, command):
    more = ("--model", model_folder, "--texts.test_one_in", 1, "--out", tmp_path / "out")
    said = refused(*command, *more)
    assert said.startswith("language 'zh' has no training document among 31: all are held out")


def test_files_that_do_not_fit_the_configuration(refused, tmp_path, model_folder, make_model):
    shutil.copytree(model_folder, tmp_path / "odd")
    make_model(hidden_size=32).config.save_pretrained(tmp_path / "odd")
    said = refused(*train(tmp_path / "odd", tmp_path))
    assert said.startswith(f"config.json of {tmp_path / 'odd'} and its weights do not fit: ")
    assert "[400, 16] in the files, and [400, 32] by config.json" in said


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--model", "BASE", "--languages", "[zh]", "--optimization.sequence_length", 32),
        ("train", "--model", "BASE", "--languages", "[zh]", "--dry_run"),
        ("extend", "--model", "BASE", "--learn", 3, "--language", "zh"),
        ("score", "--model", "BASE", "--languages", "[zh]", "--sequence_length", 32),
        ("select", "--model", "BASE", "--kind", "random"),
        ("select", "--model", "BASE", "--kind", "vocabulary", "--language", "zh"),
        ("ablate", "--model", "BASE", "--regions", "[REGION]"),
        ("perturb", "--model", "BASE", "--dimensions", "[1]"),
        ("quickstart", "--model", "BASE"),
        ("paper", "--model", "BASE"),
        ("compare", "--train.model.path", "BASE", "--train.languages", "[zh]"),
        ("info", "BASE"),
        ("verify", "BASE", "BASE", "REGION"),
    ],
    ids=lambda command: command[0],
)
def test_a_quantized_base_is_refused(refused, tmp_path, model_folder, region_file, command):
    base = shutil.copytree(model_folder, tmp_path / "base")
    state = load_file(base / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    state |= {name: state[name].to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(1, 1)}
    save_file(state, base / "model.safetensors", {"format": "pt"})
    words = [str(word).replace("REGION", str(region_file)) for word in command]
    words = [word.replace("BASE", str(base)) for word in words]
    if "--dry_run" not in words:
        words += ["--out", tmp_path / "out"]
    assert "stored quantized" in refused(*words)
    assert not (tmp_path / "out").exists()


def test_norwegian_is_a_language(refused, tmp_path):
    (tmp_path / "r.yaml").write_text("model:\n  path: nowhere\nlanguages: [no]\n")
    assert "cannot load" in refused("score", tmp_path / "r.yaml")
    assert "cannot load" in refused("score", "--model", "nowhere", "--languages", "[no]")


def test_quickstart_takes_the_model_as_a_plain_path(refused, tmp_path):
    said = refused("quickstart", "--model", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert "cannot load" in said


def test_missing_model(refused, tmp_path):
    said = refused(*train(tmp_path / "nowhere", tmp_path))
    assert "cannot load" in said
    assert str(tmp_path / "nowhere") in said


def test_sequence_longer_than_the_model(refused, tmp_path, model_folder):
    more = ("--optimization.sequence_length", 129)
    said = refused(*train(model_folder, tmp_path, *more))
    assert said.startswith("sequence_length is 129 tokens and the model was built for 128")
    said = refused("score", "--model", model_folder, "--sequence_length", 129)
    assert said.startswith("sequence_length is 129 tokens and the model was built for 128")


def test_tokenizer_of_another_model(refused, tmp_path, make_model, tokenizer):
    make_model(vocab_size=300).save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    said = refused(*train(tmp_path / "small", tmp_path))
    assert said.startswith("the tokenizer has 400 tokens and the model embeds 300")


def test_model_without_all_weights(refused, tmp_path, model_folder):
    folder = tmp_path / "holes"
    shutil.copytree(model_folder, folder)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "'model.layers.1.mlp.up_proj.weight'" in refused(*train(folder, tmp_path))


def test_region_of_another_base_and_of_another_architecture(
    refused, tmp_path, model_folder, make_model, tokenizer
):
    other = make_model(seed=1)
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    scores = tmp_path / "scores"
    with pytest.raises(SystemExit, match="0"):
        main(
            ["score", "--model", str(tmp_path / "other"), "--languages", "[en]", "--out",
             str(scores), "--sequence_length", "32", "--sequences", "2"]
        )  # fmt: skip
    with pytest.raises(SystemExit, match="0"):
        main(["select", "--scores", str(scores), "--out", str(tmp_path / "core")])
    region = tmp_path / "core" / "region.safetensors"
    assert "base" in refused(*train(model_folder, tmp_path, "--region", region))

    wide = tmp_path / "wide.safetensors"
    Region.random(make_model(hidden_size=32), 0.1, seed=0).save(wide)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert "shape" in refused(*train(model_folder, tmp_path, "--region", wide))


@pytest.mark.parametrize(
    "more", [("--model.dtype", "bfloat16"), ("--optimization.precision", "bf16-true")]
)
def test_freezing_weights_that_would_be_rounded(refused, tmp_path, model_folder, region_file, more):
    said = refused(*train(model_folder, tmp_path, "--region", region_file, *more))
    field = more[0].removeprefix("--")
    expected = f"the base is stored in torch.float32, and {field}, torch.bfloat16, would round"
    assert said.startswith(expected)


def test_region_with_an_unknown_name_shows_near_misses(refused, tmp_path, model_folder, model):
    masks = Region.random(model, 0.1, seed=0).masks()
    masks["model.layers.0.mlp.upp_proj.weight"] = masks.pop("model.layers.0.mlp.up_proj.weight")
    Region.from_masks(masks).save(tmp_path / "typo.safetensors")
    said = refused(*train(model_folder, tmp_path, "--region", tmp_path / "typo.safetensors"))
    assert "model.layers.0.mlp.upp_proj.weight" in said
    assert "did you mean 'model.layers.0.mlp.up_proj.weight'" in said


def test_truncated_region(refused, tmp_path, model_folder, region_file):
    region_file.write_bytes(region_file.read_bytes()[:-100])
    said = refused(*train(model_folder, tmp_path, "--region", region_file))
    assert "truncated" in said


def test_region_with_an_index_out_of_range(refused, tmp_path, model_folder, region_file):
    with safe_open(region_file, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["lm_head.weight"][-1] = 400 * 16
    save_file(tensors, region_file, metadata)
    said = refused(*train(model_folder, tmp_path, "--region", region_file))
    assert "must lie in 0 to 6399, got 6400" in said
    assert "lm_head.weight" in said


def test_empty_text_file_and_language_without_data(refused, tmp_path, model_folder, text_folder):
    (text_folder / "zh.jsonl").write_text("")
    texts = ("--texts", text_folder)
    assert "zh.jsonl is empty" in refused(*train(model_folder, tmp_path, *texts))
    (text_folder / "zh.jsonl").unlink()
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert "no texts for language 'zh'" in refused(*train(model_folder, tmp_path, *texts))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--freeze.first_step", 1000), "freeze.first_step must be below the 1000 steps"),
        (("--freeze.last_step", 1000), "freeze.last_step must be below the 1000 steps"),
    ],
)
def test_freezing_that_cannot_be(refused, tmp_path, model_folder, region_file, options, expected):
    said = refused(
        *train(model_folder, tmp_path, "--region", region_file, "--optimization.max_steps", 1000),
        *options,
    )
    assert said.startswith(expected)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--freeze.clamp", 1e39),
         "freeze.clamp is 1e+39, which is too large for model.dtype, torch.float32"),
        (("--freeze.clamp", 1e6, "--export_dtype", "float16"),
         "freeze.clamp is 1e+06, which is too large for export_dtype, torch.float16"),
        (("--freeze.clamp", 3.4e38, "--optimization.precision", "bf16-mixed"),
         "too large for optimization.precision, torch.bfloat16"),
        (("--freeze.clamp", 1e-60), "which is too small for model.dtype, torch.float32; give 0"),
        (("--optimization.micro_batch", 10**10), "optimization.micro_batch is 10000000000, of"),
        (("--optimization.max_steps", 2**62), "max_steps must be less: a run has at most 68,719,"),
        (("--optimization.max_hours", 1e308), "max_hours must be above 0 and at most 1,000,000"),
        (("--engine.devices", 1000, "--optimization.batch_tokens", 256_000),
         "engine.devices is 1000 and this machine has no GPU and"),
    ],
)  # fmt: skip
def test_what_the_recipe_tells_is_refused_before_anything_is_written(
    refused, tmp_path, model_folder, region_file, more, complaint
):
    command = train(model_folder, tmp_path, "--region", region_file, "--watch.off", "false")
    if "--engine.devices" in more and torch.cuda.is_available():
        pytest.skip("GPUs are counted by another check")
    assert complaint in refused(*command, *more)
    assert not (tmp_path / "out").exists()


ZERO = ("--engine.kind", "zero-2", "--engine.deepspeed")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ("{zero_optimization: {round_robin_gradients: true}}", "with which no region can be froz"),
        ("{zero_optimization: {offload_optimizer: {device: nvme}}}", "offload_optimizer to nvme"),
        ("{fp16: {enabled: true}}", "engine.deepspeed sets fp16, which follows from optimization"),
        ("{optimizer: {type: Adam}}", "engine.deepspeed sets optimizer, which follows from"),
        (
            "{zero_optimisation: {stage: 2}}",
            "engine.deepspeed has 'zero_optimisation', which DeepSpeed does not know (did you mean "
            "'zero_optimization'",
        ),
        ("{zero_optimization: 5}", "zero_optimization must be a group of fields, got 5"),
        ("{zero_optimization: {reduce_bucket_size: x}}", "optimization: reduce_bucket_size: Input"),
    ],
)  # fmt: skip
def test_settings_of_deepspeed_are_refused_before_anything_is_written(
    refused, tmp_path, model_folder, region_file, settings, complaint
):
    pytest.importorskip("deepspeed")
    command = train(model_folder, tmp_path, "--region", region_file, *ZERO, settings)
    assert complaint in refused(*command)
    assert complaint in refused(*command, "--dry_run")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--regions", "{a: {kind: file, path: nowhere}}"), "regions.a: there is no region at"),
        (("--regions", "{a: {kind: layers, first: 99}}"), "regions.a: expected 1 to 2 decoder"),
        (("--regions", "{a: {kind: core}}", "--scores", "nowhere"), "regions.a: expected a folder"),
        (("--variants.x.changes.lora.targets", "[nope]"), "variants.x: lora.targets has 'nope'"),
        (("--variants.x.changes.replay.languages", "[xx]"), "variants.x: replay has no texts of"),
        (("--variants.x.changes.penalty", "{strength: 1, fisher: fisher}", "--scores", "nowhere"),
         "variants.x: expected a folder of score files at nowhere/fisher"),
        (("--regions.a.kind", "layers", "--regions.a.first", 1, "--variants.x.region", "a",
          "--variants.x.changes.freeze.clamp", 1e39), "variants.x: freeze.clamp is 1e+39"),
        (("--train.watch.max_length", 1000), "max_length is 1000 tokens and the model was built"),
    ],
)  # fmt: skip
def test_a_comparison_is_refused_before_the_base_is_evaluated(
    refused, tmp_path, model_folder, more, complaint
):
    said = refused(
        "compare", "--train.model.path", model_folder, "--train.languages", "[zh]",
        "--train.watch.languages", "[zh, en]", "--train.watch.documents", 1, "--variants.plain",
        "{}", "--train.optimization.sequence_length", 32, "--out", tmp_path / "out", *more,
    )  # fmt: skip
    assert complaint in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (("paper", "--weights", 10**6), "weights is 1000000, and the decoder blocks have "),
        (("paper", "--max_length", 1000), "max_length is 1000 tokens and the model was built for"),
        (("paper", "--scale", 1e39), "scale must be at most 3.403e+38, as float32 holds it"),
        (("perturb", "--dimensions", "[1]", "--by", -1e39), "by must be at most 3.403e+38, as fl"),
        (("extend", "--learn", 3, "--multiple_of", 10**9), "multiple_of must be from 1 to 65536"),
        (("select", "--kind", "random", "--seed", -1), "seed must be from 0 to 2**32 - 1, got -1"),
    ],
    ids=lambda value: value[0] + value[1] if isinstance(value, tuple) else None,
)  # fmt: skip
def test_numbers_that_no_model_can_bear(refused, tmp_path, model_folder, command, complaint):
    more = {"paper": ("--languages", "[en, zh]", "--core_languages", "[en]", "--sequence_length",
                      32), "extend": ("--language", "zh")}.get(command[0], ())  # fmt: skip
    said = refused(*command, "--model", model_folder, *more, "--out", tmp_path / "out")
    assert said.startswith(complaint)
    assert not (tmp_path / "out").exists()


def test_the_value_that_verify_compares_with_fits_the_type(refused, model_folder, region_file):
    said = refused("verify", model_folder, model_folder, region_file, "--clamp", -1e39)
    assert said.startswith("clamp is -1e+39, which no entry")


def test_adapters_larger_than_any_layer(refused, tmp_path, model_folder):
    said = refused(*train(model_folder, tmp_path, "--lora.rank", 25))
    assert said == "lora.rank is 25 and the largest side of a layer is 24; use 24 or less"


def test_a_batch_to_score_that_fits_no_memory(refused, tmp_path, model_folder, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 50)  # 2,500 bytes
    said = refused(
        "score", "--model", model_folder, "--languages", "[zh]", "--sequence_length", 32,
        "--batch", 2**62, "--sequences", 3, "--out", tmp_path / "out",
    )  # fmt: skip
    assert said.startswith("batch is 3, of which the hidden states alone take 6.14 KB, and there")


def test_output_folder_of_another_run_is_left_as_it_is(refused, tmp_path, model_folder):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    assert "is not empty" in refused(*train(model_folder, tmp_path))
    assert os.listdir(tmp_path / "out") == ["mine.txt"]
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_output_folder_that_cannot_be_written(refused, tmp_path, model_folder):
    (tmp_path / "file").write_text("keep")
    said = refused("info", model_folder, "--out", tmp_path / "file" / "out")
    assert "cannot write to" in said
    assert "is a file" in refused("info", model_folder, "--out", tmp_path / "file")
    said = refused("info", "nowhere", "--out", "n" * 300)
    assert said.startswith("--out: expected a file name of at most 255 bytes, got 300 in 'nnn")
    assert "--out: cannot expand '$NO_RUN/x'" in refused("info", "nowhere", "--out", "$NO_RUN/x")
    assert "expected a path, got an empty text" in refused("info", "nowhere", "--out", "")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_output_folder_in_a_folder_that_is_only_read(refused, tmp_path, model_folder):
    (tmp_path / "read").mkdir(mode=0o500)
    assert "cannot write to" in refused("info", model_folder, "--out", tmp_path / "read" / "a")


def test_loss_that_is_not_finite_is_a_check_that_says_no(tmp_path, model_folder, capsys):
    arguments = train(model_folder, tmp_path, "--optimization.learning_rate", 1e30,
                      "--optimization.warmup_steps", 0)  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert "at step 2" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "model").exists()


def test_jobs_that_run_no_model_do_not_import_what_runs_them():
    jobs = [VERBS[name].job for name in ("convert", "info", "overlap", "report", "select")]
    code = (
        f"import sys\nimport {', '.join(f'freezetrain.{job}' for job in jobs)}\n"
        "assert 'torchmetrics' not in sys.modules and 'lightning' not in sys.modules\n"
        "assert 'transformers.modeling_utils' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_disk_that_is_full_while_training(refused, model_folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("freezetrain.training.checkpoints.StepCheckpoint._save_checkpoint", full)
    said = refused(*train(model_folder, tmp_path, "--checkpoint_every", 1))
    assert said.startswith("the disk is full: ")
    assert "then give the same command again" in said
    monkeypatch.undo()
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in train(model_folder, tmp_path)])
    assert done.value.code == 2  # another checkpoint_every is another run
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in train(model_folder, tmp_path, "--checkpoint_every", 1)])
    assert done.value.code == 0
