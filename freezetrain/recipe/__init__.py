"""The recipe: what a job is told, as dataclasses. They are the command line and the YAML schema.

Nothing here imports torch, so that the command line can show its help at once.
"""

from freezetrain.recipe.jobs import (
    AblateRecipe,
    ForgettingRecipe,
    InfoRecipe,
    QuickstartRecipe,
    ScoreRecipe,
    SelectRecipe,
    TrainRecipe,
    VerifyRecipe,
)
from freezetrain.recipe.parts import (
    Dtype,
    EvaluationTexts,
    Freezing,
    ModelSource,
    Optimization,
    TextSource,
    Watch,
)

__all__ = [
    "AblateRecipe",
    "Dtype",
    "EvaluationTexts",
    "ForgettingRecipe",
    "Freezing",
    "InfoRecipe",
    "ModelSource",
    "Optimization",
    "QuickstartRecipe",
    "ScoreRecipe",
    "SelectRecipe",
    "TextSource",
    "TrainRecipe",
    "VerifyRecipe",
    "Watch",
]
