"""What keeps the model of a run near its base: a penalty, and averages of weights."""

from transformers import PreTrainedModel

from freezetrain.callbacks import BaseAverage, BasePenalty, WeightAverage
from freezetrain.callbacks.base_penalty import check_importance
from freezetrain.errors import UserError
from freezetrain.jobs.score_files import language_scores
from freezetrain.recipe import TrainRecipe
from freezetrain.regions import Scores


def penalty_of(recipe: TrainRecipe, shape: PreTrainedModel) -> BasePenalty | None:
    """The callback of ``recipe.penalty``; ``shape`` is the model without weights.

    UserError where the folder holds no scores, scores of another method, or of another model.
    """
    if recipe.penalty is None:
        return None
    if recipe.penalty.fisher is None:
        return BasePenalty(recipe.penalty.strength)
    scores = Scores.sum(
        list(language_scores(recipe.penalty.fisher, recipe.penalty.languages or ()).values())
    )
    if scores.made["method"] != "fisher":
        raise UserError(
            f"penalty.fisher must be a folder of scores of the method fisher, and those in "
            f"{recipe.penalty.fisher} are of {scores.made['method']}; make them with `freezetrain "
            "score --methods '[fisher]'`"
        )
    check_importance(scores, shape)
    return BasePenalty(recipe.penalty.strength, scores)


def average_of(recipe: TrainRecipe) -> WeightAverage | BaseAverage | None:
    """What is exported instead of the last weights, by the recipe."""
    if recipe.average_with_base is not None:
        return BaseAverage(recipe.average_with_base)
    decay = recipe.optimization.ema_decay
    return None if decay is None else WeightAverage(decay)
