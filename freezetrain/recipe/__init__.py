"""The recipe: what a job is told, as dataclasses. They are the command line and the YAML schema.

Nothing here imports torch, so that the command line can show its help at once.
"""

from freezetrain.recipe.ablate import AblateRecipe
from freezetrain.recipe.benchmarks import Benchmarks
from freezetrain.recipe.brake import Braking
from freezetrain.recipe.compare import GROWS, CompareRecipe, Variant
from freezetrain.recipe.convert import ConvertRecipe
from freezetrain.recipe.jobs import (
    ExtendRecipe,
    ForgettingRecipe,
    InfoRecipe,
    QuickstartRecipe,
    ReportRecipe,
    VerifyRecipe,
)
from freezetrain.recipe.lora import Lora
from freezetrain.recipe.model import Attention, Dtype, ModelSource
from freezetrain.recipe.optimization import Engine, Freezing, Optimization
from freezetrain.recipe.overlap import OverlapRecipe
from freezetrain.recipe.paper import PAPER_CORE, PaperRecipe
from freezetrain.recipe.penalty import Penalty
from freezetrain.recipe.perturb import PerturbRecipe, SingleWeight
from freezetrain.recipe.score import ScoreRecipe
from freezetrain.recipe.select import SelectRecipe
from freezetrain.recipe.texts import EvaluationTexts, Replay, TextSource, Watch
from freezetrain.recipe.train import CHANGEABLE, TrainRecipe, changeable

__all__ = [
    "CHANGEABLE",
    "GROWS",
    "PAPER_CORE",
    "AblateRecipe",
    "Attention",
    "Benchmarks",
    "Braking",
    "CompareRecipe",
    "ConvertRecipe",
    "Dtype",
    "Engine",
    "EvaluationTexts",
    "ExtendRecipe",
    "ForgettingRecipe",
    "Freezing",
    "InfoRecipe",
    "Lora",
    "ModelSource",
    "Optimization",
    "OverlapRecipe",
    "PaperRecipe",
    "Penalty",
    "PerturbRecipe",
    "QuickstartRecipe",
    "Replay",
    "ReportRecipe",
    "ScoreRecipe",
    "SelectRecipe",
    "SingleWeight",
    "TextSource",
    "TrainRecipe",
    "Variant",
    "VerifyRecipe",
    "Watch",
    "changeable",
]
