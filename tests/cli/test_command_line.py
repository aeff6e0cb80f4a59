"""The command line as a recipe: recipes (YAML files), then options, which win."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from freezetrain import __version__
from freezetrain.cli import main
from freezetrain.cli.command_line import parse
from freezetrain.cli.verbs import VERBS
from freezetrain.errors import UserError
from freezetrain.recipe.sources import ModelSource, TextSource
from freezetrain.training.recipe import Lora, Penalty, Replay

TRAIN = ("train", "--model", "x")


def recipe(*words):
    return parse([str(word) for word in words]).recipe


def test_options_win_over_the_recipe_and_leave_the_rest_of_it(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "model: {path: m}\npenalty: {strength: 1e-2, fisher: scores/fisher}\n"
        "optimization: {max_steps: 7, seed: 3}\nweights: {en: 0.5, zh: 0.5}\n"
    )
    told = recipe(
        "train", tmp_path / "r.yaml", "--penalty.strength", 3, "--optimization.seed=4",
        "--weights", "{no: 1}",
    )  # fmt: skip
    assert told.penalty == Penalty(3.0, "scores/fisher")
    assert (told.optimization.max_steps, told.optimization.seed) == (7, 4)
    assert told.weights == {"no": 1.0}
    assert recipe("train", tmp_path / "r.yaml", "--penalty", "null").penalty is None
    (tmp_path / "more.yaml").write_text("optimization: {seed: 5}\n")
    both = recipe("train", tmp_path / "r.yaml", "--config", tmp_path / "more.yaml")
    assert (both.optimization.max_steps, both.optimization.seed) == (7, 5)


def test_groups_are_given_field_by_field_or_as_yaml_or_as_a_file(tmp_path):
    told = recipe(*TRAIN, "--lora.rank", 8, "--lora.targets", "[q_proj]")
    assert told.lora == Lora(8, targets=["q_proj"])
    assert recipe(*TRAIN, "--lora", "{}").lora == Lora()
    (tmp_path / "replay.yaml").write_text("texts: {folder: old}\nshare: 0.2\n")
    told = recipe(*TRAIN, "--replay", tmp_path / "replay.yaml", "--replay", "{until: 0.5}")
    assert told.replay == Replay(until=0.5)  # of an option given twice the last one counts
    told = recipe(*TRAIN, "--replay", tmp_path / "replay.yaml", "--replay.until", 0.5)
    assert told.replay == Replay(TextSource("old"), share=0.2, until=0.5)
    told = recipe(*TRAIN, "--brake.limits.zh-Hans", 0.05, "--brake.limits.mean=0.01")
    assert told.brake.limits == {"zh-Hans": 0.05, "mean": 0.01}
    told = recipe(*TRAIN, "--engine.kind", "zero-2", "--engine.deepspeed.zero_optimization.x", 2)
    assert told.engine.deepspeed == {"zero_optimization": {"x": 2}}


def test_words_right_after_the_verb():
    told = parse(["report", "12", "[a]", "b: c", "--names", "[x]", "--out", "o"])
    assert (told.recipe.runs, told.recipe.names, told.out) == (
        ["12", "[a]", "b: c"],
        ["x"],
        Path("o"),
    )
    told = recipe("forgetting", "base", "1e5", "b", "--evaluation.texts.folder", "no")
    assert (told.base, told.models) == (ModelSource("base"), [ModelSource("1e5"), ModelSource("b")])
    assert told.evaluation.texts.folder == "no"  # text is text, whatever YAML takes it for
    assert recipe(*TRAIN, "--texts", "t").texts == TextSource("t")


COMMANDS = [
    (*TRAIN, "--languages", "[no, yes, 'null']", "--weights", "{no: .25, y: .75}",
     "--optimization.learning_rate", "3e-5", "--texts.names", "{no: nob_Latn}"),
    (*TRAIN, "--engine.kind", "zero-3", "--engine.deepspeed",
     "{zero_optimization: {reduce_bucket_size: 1000}}", "--replay", "{share: 0.1}"),
    ("select", "--kind", "random", "--like", "1e5"),
    ("score", "--model", "x", "--methods", "[wanda]", "--snapshots", "[10]", "--seed", "7"),
    ("paper", "--model", "x", "--ratios", "[0.01]", "--languages", "[no, en]", "--prompts", "[no]"),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--print_config", "--print-config"])
def test_a_printed_recipe_is_the_same_again(command, option, tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([*command, option])
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert recipe(command[0], file) == recipe(*command)
    assert list(tmp_path.iterdir()) == [file]  # and nothing was run


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["trian"], "unknown verb 'trian' (did you mean 'train'?); verbs: quickstart, paper, "),
        ([], "no verb given; verbs: quickstart, paper, score"),
        (["train"], "missing model.path: give it"),
        (["verify", "a", "b"], "missing region: give it"),
        (["forgetting", "base"], "missing models: give it"),
        (["info", "a", "b"], "did not expect 'b': words without an option's name come right after"),
        ([*TRAIN, "--out"], "argument --out: expected one argument"),
        (
            ["train", "nowhere.yaml"],
            "cannot read the recipe nowhere.yaml: No such file or directory",
        ),
        (
            [*TRAIN, "--optimization.max_stepz", 3],
            "unknown field 'optimization.max_stepz' (did you mean 'optimization.max_steps'",
        ),
        (
            [*TRAIN, "--replay.shar", 0.1],
            "unknown field 'replay.shar' (did you mean 'replay.share'",
        ),
        ([*TRAIN, "--replay.share", "much"], "replay.share: expected float, got 'much'"),
        ([*TRAIN, "--optimization.max_steps", "many"], "max_steps: expected int, got 'many'"),
        (
            [*TRAIN, "--optimization.max_tokens", "1e9"],
            "max_tokens: expected int, got 1000000000.0",
        ),
        ([*TRAIN, "--languages", "zh"], "languages: expected a list, as [a, b], got 'zh'"),
        ([*TRAIN, "--languages", "[zh"], "--languages: cannot read '[zh': it is not YAML: "),
        (
            [*TRAIN, "--model.dtype", "floot32"],
            "model.dtype: expected one of 'float32', 'bfloat16', 'float16', 'stored', got "
            "'floot32' (did you mean 'float32'",
        ),
        ([*TRAIN, "--replay.share", 2], "share must be above 0 and below 1, got 2.0"),
        ([*TRAIN, "--texts.test_one_in", -1], "test_one_in must be 0 or more, got -1"),
    ],
)
def test_bad_input_is_one_sentence(words, complaint):
    with pytest.raises(UserError) as error:
        recipe(*words)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("model: {path: x}\noptimization: {lerning_rate: 1}\n",
         "r.yaml: unknown field 'optimization.lerning_rate' (did you mean "
         "'optimization.learning_rate'"),
        ("model: {path: x}\nreplay: {shre: 0.1}\n",
         "r.yaml: unknown field 'replay.shre' (did you mean 'replay.share'"),
        ("model: {path: 3}\n", "r.yaml: model.path: expected str, got 3; put it in quotes"),
        ("model: [\n", "r.yaml: it is not YAML: while parsing"),
        ("- model\n", "r.yaml: expected the fields of a recipe, name: value, got ['model']"),
    ],
)  # fmt: skip
def test_a_bad_recipe_is_named(text, complaint, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        recipe("train", tmp_path / "r.yaml")
    assert complaint in str(error.value)


def test_paths_are_expanded_in_recipes_and_on_the_command_line(tmp_path, monkeypatch):
    """For every verb's paths in all places: fields, groups, lists, names, and whole recipes."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("W", str(tmp_path))
    (tmp_path / "r.yaml").write_text(
        "model: {path: ~/m}\ntexts: {folder: $W/t}\nreplay: {texts: {folder: '~'}}\n"
        "penalty: {strength: 1, fisher: '${W}/f'}\n"
    )
    told = parse(["train", "$W/r.yaml", "--out=~/run", "--cache", "~/c", "--region", "~/r"])
    assert told.out == Path("/home/me/run")
    assert told.recipe.model.path == "/home/me/m"
    assert told.recipe.texts.folder == f"{tmp_path}/t"
    assert told.recipe.replay.texts.folder == "/home/me"
    assert told.recipe.penalty.fisher == f"{tmp_path}/f"
    assert (told.recipe.cache, told.recipe.region) == ("/home/me/c", "/home/me/r")
    assert recipe("report", "~/a", "$W").runs == ["/home/me/a", str(tmp_path)]
    assert recipe("overlap", "--regions", "[~/a, '${W}/b']").regions[1] == f"{tmp_path}/b"
    told = recipe("forgetting", "~/b", "~/m", "org/$W", "--benchmarks.tasks", "[x]",
                  "--benchmarks.folder=~/tasks")  # fmt: skip
    assert [model.path for model in (told.base, *told.models)] == [
        "/home/me/b", "/home/me/m", f"org/{tmp_path}",
    ]  # fmt: skip
    assert told.benchmarks.folder == "/home/me/tasks"
    told = recipe(
        "compare", "--train.model.path", "~/m", "--train.languages", "[zh]",
        "--regions", "{a: {kind: file, path: ~/a}}", "--regions.b.scores", "~/s",
        "--variants", "{plain: {}, x: {region: a, changes: {replay: {texts: {folder: ~/t}}}}}",
        "--scores", "~/s",
    )  # fmt: skip
    assert told.train.model.path == "/home/me/m"
    assert told.regions == {
        "a": {"kind": "file", "path": "/home/me/a"},
        "b": {"scores": "/home/me/s"},
    }
    changes = told.variants["x"].changes
    assert changes == {"replay": {"texts": {"folder": "/home/me/t"}}}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["verify", "a", "b", "c", "--clamp", ".nan"], "clamp: expected a finite number, got nan"),
        (["quickstart", "--learning_rate", "1e999"], "learning_rate: expected a finite number"),
        ([*TRAIN, "--weights", "{zh: .inf}"], "weights.zh: expected a finite number, got inf"),
        ([*TRAIN, "--engine.kind", "zero-2", "--engine.deepspeed", "{a: [.nan]}"],
         "engine.deepspeed.a[0]: expected a finite number, got nan"),
        (["score", "--model", "x", "--batch", "1" + "0" * 20],
         "--batch: cannot read '100000000000000000000': it holds a number beyond 64 bits"),
        (["select", "--scores", "a\x1bb"], "scores: expected text without control characters"),
        (["select", "--scores", "caf\udce9"], "scores: expected text in UTF-8, got 'caf"),
        (["extend", "--model", "x", "--language", "../zh"], "language: expected a name that a"),
        ([*TRAIN, "--languages", "[" + "z" * 300 + "]"], "languages[0]: expected a name of at"),
        (["info", "$NO_SUCH/x"], "path: cannot expand '$NO_SUCH/x': the variable 'NO_SUCH' is not"),
        (["report", "a", "~no-such-user/x"], "runs[1]: cannot expand '~no-such-user/x': no user"),
        (["train", "$NO_SUCH.yaml"], "--config: cannot expand '$NO_SUCH.yaml'"),
        ([*TRAIN, "--languages", "[" * 5000], "it holds values nested more than 100 deep"),
        ([*TRAIN, "--optimization", "{seed: 1, seed: 2}"], "it holds the name 'seed' twice"),
    ],
)  # fmt: skip
def test_what_no_number_no_path_and_no_name_can_be(words, complaint):
    with pytest.raises(UserError) as error:
        recipe(*words)
    assert complaint in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb(verb, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert VERBS[verb].help in said
    assert VERBS[verb].help == " ".join(VERBS[verb].recipe_type().__doc__.split())
    assert "--out OUT" in said
    assert "default: " in said


def test_help_and_version_start_without_what_takes_long():
    """In a process of its own: neither torch nor the recipes' jobs are imported."""
    code = (
        "import sys\nfrom freezetrain.cli import main\ntry: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'transformers', 'lightning', 'rich'} & {*sys.modules})"
    )
    environment = {**os.environ, "COLUMNS": "300", "PYTHONPATH": os.pathsep.join(sys.path)}
    options = {"capture_output": True, "text": True, "env": environment, "check": True}
    said = subprocess.run([sys.executable, "-c", code], **options).stdout
    assert said.splitlines()[-1] == "set()"
    assert "--optimization.learning_rate FLOAT" in said
    command = [sys.executable, "-m", "freezetrain"]
    assert subprocess.run([*command, "--version"], **options).stdout == f"{__version__}\n"
    overview = " ".join(subprocess.run([*command, "--help"], **options).stdout.split())
    assert all(f"{name} {verb.help}" in overview for name, verb in VERBS.items())
