"""The recipe: what a job is told, as dataclasses. They are the command line and the YAML schema.

Nothing here imports torch, so that the command line can show its help at once.
"""

from freezetrain.recipe.benchmarks import Benchmarks
from freezetrain.recipe.brake import Braking
from freezetrain.recipe.jobs import (
    AblateRecipe,
    ExtendRecipe,
    ForgettingRecipe,
    InfoRecipe,
    QuickstartRecipe,
    ReportRecipe,
    ScoreRecipe,
    SelectRecipe,
    VerifyRecipe,
)
from freezetrain.recipe.model import Attention, Dtype, ModelSource
from freezetrain.recipe.optimization import Engine, Freezing, Optimization
from freezetrain.recipe.texts import EvaluationTexts, Replay, TextSource, Watch
from freezetrain.recipe.train import CHANGEABLE, TrainRecipe, changeable

__all__ = [
    "CHANGEABLE",
    "AblateRecipe",
    "Attention",
    "Benchmarks",
    "Braking",
    "Dtype",
    "Engine",
    "EvaluationTexts",
    "ExtendRecipe",
    "ForgettingRecipe",
    "Freezing",
    "InfoRecipe",
    "ModelSource",
    "Optimization",
    "QuickstartRecipe",
    "Replay",
    "ReportRecipe",
    "ScoreRecipe",
    "SelectRecipe",
    "TextSource",
    "TrainRecipe",
    "VerifyRecipe",
    "Watch",
    "changeable",
]
