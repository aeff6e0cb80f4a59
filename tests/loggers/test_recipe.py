"""The fields of loggers: what is read as what, and what is refused."""

from dataclasses import asdict

import pytest

from freezetrain import extras
from freezetrain.cli import main
from freezetrain.cli.command_line import parse
from freezetrain.errors import UserError
from freezetrain.loggers import opening
from freezetrain.loggers.recipe import Mlflow, Wandb
from freezetrain.recipe import yaml12
from freezetrain.recipe.mapping import build
from freezetrain.recipe.sources import ModelSource
from freezetrain.run_folder import changed_fields
from freezetrain.training.recipe import TrainRecipe

MODEL = ModelSource("model")


@pytest.mark.parametrize(
    ("said", "kinds"),
    [
        ("csv", ["csv"]),
        ("none", ["none"]),
        ("[tensorboard, wandb]", ["tensorboard", "wandb"]),
        ("[tensorboard,csv]", ["tensorboard", "csv"]),
    ],
)
def test_one_or_several_on_the_command_line_and_in_a_recipe(said, kinds, tmp_path):
    assert parse(["train", "--model", "m", "--logger", said]).recipe.logger == kinds
    (tmp_path / "r.yaml").write_text(f"model: {{path: m}}\nlogger: {said}\n")
    recipe = parse(["train", "r.yaml"]).recipe
    assert recipe.logger == kinds
    again = yaml12.load(yaml12.dump(asdict(recipe)))
    assert build(TrainRecipe, again, "") == recipe


def test_tensorboard_alone_where_nothing_is_said_and_options_of_both():
    words = "--wandb.project p --wandb.mode offline --mlflow.tracking_uri http://h:5000"
    assert TrainRecipe(MODEL).logger == ["tensorboard"]
    recipe = parse(["train", "--model", "m", "--logger", "[wandb,mlflow]", *words.split()]).recipe
    assert recipe.wandb == Wandb(project="p", mode="offline")
    assert recipe.mlflow == Mlflow(tracking_uri="http://h:5000")
    off = parse(["train", "--model", "m", "--logger", "none", *words.split()]).recipe
    assert off.wandb.project == "p", "one word turns off what a recipe describes"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"logger": "wanbd"}, r"logger: expected one of .*'wanbd' \(did you mean 'wandb'\?\)"),
        ({"logger": ["csv", "tensorbord"]}, r"logger\[1\]: .*did you mean 'tensorboard'"),
        ({"logger": None}, "'csv', 'none', or a list of them, got None$"),
        ({"logger": []}, "logger must be one or more loggers, or none"),
        ({"wandb": {"name": ["n"]}}, r"wandb\.name: expected str, got \['n'\]$"),
        ({"logger": ["csv", "csv"]}, "logger must be loggers, each once"),
        ({"logger": ["none", "csv"]}, "logger must be none alone, or loggers"),
        ({"wandb": {"project": "p"}}, "logger must be with wandb, which the recipe has options"),
        ({"logger": "csv", "mlflow": {"name": "n"}}, "logger must be with mlflow"),
        ({"wandb": {"projcet": "p"}}, r"did you mean 'wandb\.project'"),
        ({"wandb": {"mode": "ofline"}}, r"wandb\.mode: expected one of .*did you mean 'offline'"),
        ({"wandb": {"project": "a/b"}}, r"wandb\.project must be a name without / "),
        ({"wandb": {"entity": " "}}, r"wandb\.entity must be a text that is not empty"),
        ({"wandb": {"name": ""}}, r"wandb\.name must be a text that is not empty"),
        ({"mlflow": {"tracking_uri": ""}}, r"mlflow\.tracking_uri must be a text that is not"),
        ({"mlflow": {"experiment": ""}}, r"mlflow\.experiment must be a text that is not empty"),
        (
            {"mlflow": {"tracking_uri": "http://me:secret@host:5000"}},
            r"mlflow\.tracking_uri must be without a user and a password",
        ),
    ],
)
def test_what_is_refused(given, complaint):
    with pytest.raises(UserError, match=complaint) as refused:
        build(TrainRecipe, {"model": {"path": "m"}, **given}, "")
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_run_may_go_on_with_other_loggers_also_one_of_before_there_were_any():
    stored = asdict(TrainRecipe(MODEL))
    other = TrainRecipe(MODEL, logger=["wandb"], wandb=Wandb(project="p"))
    assert changed_fields(stored, other) == []
    for name in ("logger", "wandb", "mlflow"):
        del stored[name]
    assert changed_fields(stored, other) == []
    assert changed_fields(stored | {"temperature": 2.0}, other) == ["temperature"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setattr(extras, "is_there", lambda package: package != name)
    with pytest.raises(UserError, match=rf"pip install 'freezetrain\[{name}\]', or leave"):
        opening.require_loggers(["csv", name], Wandb(), Mlflow())
    opening.require_loggers(["csv", "tensorboard"], Wandb(), Mlflow())


def test_nothing_is_left_where_a_package_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(extras, "is_there", lambda package: package != "mlflow")
    for more in ([], ["--dry_run"]):
        with pytest.raises(SystemExit) as stopped:
            main(["train", "--model", "none/there", "--logger", "mlflow", "--out", "run", *more])
        assert stopped.value.code == 2
    assert list(tmp_path.iterdir()) == []
