"""Which loggers a run has, and what two of them are told."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from freezetrain.recipe.check import check

Kind = Literal["tensorboard", "wandb", "mlflow", "csv", "none"]

_NO_SIGNS = "/\\#?%:"  # of a project, says Weights & Biases


@dataclass
class Wandb:
    """Weights & Biases. What is None is as the variables WANDB_PROJECT, WANDB_MODE ... say."""

    project: str | None = None
    """Project. None: WANDB_PROJECT, or else freezetrain."""
    entity: str | None = None
    """User or team. None: WANDB_ENTITY, or else whoever is logged in."""
    name: str | None = None
    """Name of the run. None: WANDB_NAME, or else the name of the run's folder."""
    mode: Literal["online", "offline"] | None = None
    """offline: keep all in the run's folder, to send it later with `wandb sync`. None: WANDB_MODE,
    or else online."""

    def __post_init__(self) -> None:
        _check_texts("wandb", project=self.project, entity=self.entity, name=self.name)
        signs = [sign for sign in _NO_SIGNS if sign in (self.project or "")]
        expected = f"a name without {' '.join(_NO_SIGNS)}"
        check(not signs, "wandb.project", expected, self.project)


@dataclass
class Mlflow:
    """MLflow. What is None is as the variables MLFLOW_TRACKING_URI ... say."""

    tracking_uri: str | None = None
    """A server, as http://HOST:5000, or a database, as sqlite:///mlflow.db. None:
    MLFLOW_TRACKING_URI, or else where MLflow itself keeps runs."""
    experiment: str | None = None
    """Experiment. None: MLFLOW_EXPERIMENT_NAME, or else freezetrain."""
    name: str | None = None
    """Name of the run. None: the name of the run's folder."""

    def __post_init__(self) -> None:
        named = {"tracking_uri": self.tracking_uri, "experiment": self.experiment}
        _check_texts("mlflow", **named, name=self.name)
        # The recipe is kept in the run's folder, and not only there.
        secret = "@" in (self.tracking_uri or "").partition("://")[2].partition("/")[0]
        check(
            not secret,
            "mlflow.tracking_uri",
            "without a user and a password, which go into the variables MLFLOW_TRACKING_USERNAME "
            "and MLFLOW_TRACKING_PASSWORD, or with the whole address into MLFLOW_TRACKING_URI",
            "one with an @ before the host",
        )


def _check_texts(group: str, **texts: str | None) -> None:
    for name, text in texts.items():
        good = text is None or bool(text.strip())
        check(good, f"{group}.{name}", "a text that is not empty, or left out", text)


def check_loggers(kinds: Sequence[Kind], wandb: Wandb, mlflow: Mlflow) -> None:
    """UserError for loggers that do not go together, and for options of one that is not named."""
    expected = "loggers, each once"
    check(len(set(kinds)) == len(kinds), "logger", expected, kinds)
    check(bool(kinds), "logger", "one or more loggers, or none", kinds)
    check("none" not in kinds or len(kinds) == 1, "logger", "none alone, or loggers", kinds)
    if "none" in kinds:
        return  # one word turns off what the rest of a recipe describes
    for name, given in (("wandb", wandb != Wandb()), ("mlflow", mlflow != Mlflow())):
        expected = f"with {name}, which the recipe has options for"
        check(name in kinds or not given, "logger", expected, kinds)
