"""The verbs of the command line: the recipe that each takes and the job that it runs."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Verb:
    """A verb; modules are named, not imported, so that the command line starts quickly."""

    help: str  # one sentence
    recipe: str  # "<module>:<dataclass>" in freezetrain
    job: str  # module in freezetrain with `run(recipe, folder) -> Outcome`
    positional: tuple[str, ...] = ("config",)  # fields that may be given without an option's name
    trailing: str | None = None  # a list, or a field of its items, that takes all further words
    keeps: str | None = None  # what a start leaves for the next one to go on from
    outdated: str | None = None  # "<module>:<function>" that says so of a recipe and its folder
    parallel: bool = False  # may run in several processes at once
    dry: bool = False  # may be tried without being run

    @property
    def resumable(self) -> bool:
        return self.keeps is not None

    def recipe_type(self) -> type:
        kind: type = _named(self.recipe)
        return kind

    def is_outdated(self, recipe: Any, folder: Path) -> bool:
        """Whether what a run left in ``folder`` is to be made anew."""
        return self.outdated is not None and bool(_named(self.outdated)(recipe, folder))


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f"freezetrain.{module}"), name)


VERBS = {
    "quickstart": Verb(
        "The paper in minutes: find the core region, test it, freeze it, watch 30 languages.",
        "quickstart.recipe:QuickstartRecipe",
        "quickstart.quickstart",
        positional=(),
    ),
    "paper": Verb(
        "The whole paper on any model: find regions, remove them, see where they lie, compare "
        "them.",
        "paper.recipe:PaperRecipe",
        "paper.paper",
        keeps="parts that were done",
        parallel=True,
    ),
    "score": Verb(
        "Score how much the loss of each language depends on each weight.",
        "analysis.recipe:ScoreRecipe",
        "analysis.score",
        keeps="scores of languages that were done",
        parallel=True,
    ),
    "select": Verb(
        "Select regions: from scores, sets, at random, by magnitude, vocabulary, or whole blocks.",
        "analysis.recipe:SelectRecipe",
        "analysis.select",
    ),
    "ablate": Verb(
        "Evaluate languages with each of some regions set to zero, alone.",
        "analysis.recipe:AblateRecipe",
        "analysis.ablate",
    ),
    "perturb": Verb(
        "Change single weights, or all weights of a dimension, each alone, and rank the damage.",
        "analysis.recipe:PerturbRecipe",
        "analysis.perturb",
    ),
    "overlap": Verb(
        "Compare regions: how much do they have in common, and where does each lie?",
        "analysis.recipe:OverlapRecipe",
        "analysis.overlap",
        positional=(),
        trailing="regions",
    ),
    "convert": Verb(
        "Convert a region or scores to or from the layout of the paper's released code.",
        "analysis.recipe:ConvertRecipe",
        "analysis.convert",
        positional=("source",),
    ),
    "extend": Verb(
        "Add tokens to a base's vocabulary: the model that further pre-training then starts from.",
        "vocabulary.recipe:ExtendRecipe",
        "vocabulary.extend",
    ),
    "rehearse": Verb(
        "Have the base draw sequences to rehearse, and keep what it says at each of their places.",
        "sampling.recipe:RehearseRecipe",
        "sampling.rehearse",
        keeps="pieces that were drawn",
        parallel=True,
    ),
    "train": Verb(
        "Further pre-train a model, with a region frozen and other languages watched.",
        "training.recipe:TrainRecipe",
        "training.train",
        keeps="the last checkpoint",
        parallel=True,
        dry=True,
    ),
    "compare": Verb(
        "Compare ways to train further at equal gain of the target language: does freezing help?",
        "compare.recipe:CompareRecipe",
        "compare.compare",
        keeps="runs that were done, and checkpoints of others",
    ),
    "forgetting": Verb(
        "Compare models with a base: what did each forget, and gain on the target language?",
        "measuring.recipe:ForgettingRecipe",
        "measuring.forgetting",
        positional=("base.path",),
        trailing="models.path",
        keeps="what was measured of the base and of models",
        outdated="measuring.kept:outdated",
        parallel=True,
    ),
    "verify": Verb(
        "Check that every frozen entry of a region is bit-identical in two model folders.",
        "analysis.recipe:VerifyRecipe",
        "analysis.verify",
        positional=("base", "adapted", "region"),
    ),
    "report": Verb(
        "Show runs side by side in one page: what each gained, and what it forgot.",
        "report.recipe:ReportRecipe",
        "report.runs",
        positional=(),
        trailing="runs",
    ),
    "info": Verb(
        "Say what a region or score file holds, or what freezetrain sees in a model folder.",
        "analysis.recipe:InfoRecipe",
        "analysis.info",
        positional=("path",),
    ),
}
