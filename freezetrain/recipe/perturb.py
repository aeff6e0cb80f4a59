"""The recipe of changing single weights."""

from dataclasses import dataclass, field
from typing import Literal

from freezetrain.recipe.check import check
from freezetrain.recipe.model import ModelSource
from freezetrain.recipe.texts import EvaluationTexts


@dataclass
class SingleWeight:
    """One entry of a parameter."""

    name: str
    """Parameter, such as model.layers.1.input_layernorm.weight."""
    index: list[int]
    """Its place, from 0, in each dimension of the parameter."""

    def __post_init__(self) -> None:
        valid = all(place >= 0 for place in self.index)
        check(valid, "weights.index", "numbers of 0 or more", self.index)


@dataclass
class PerturbRecipe:
    """Change single weights, or all weights of a dimension, each alone, and rank the damage."""

    model: ModelSource
    """The base."""
    weights: list[SingleWeight] = field(default_factory=list)
    """Weights by name and index."""
    scores: str | None = None
    """Folder that `freezetrain score` wrote: the weights of the highest scores of the whole model
    are changed."""
    languages: list[str] = field(default_factory=list)
    """Languages whose scores are added up (scores). Empty: all in the folder."""
    count: int = 10
    """Weights taken by score (scores)."""
    norms: bool = True
    """Let weights of norms be among them (scores)."""
    dimensions: list[int] = field(default_factory=list)
    """Dimensions of the residual stream: all weights of the decoder blocks that read it, write it
    or, in a norm, scale it are changed together."""
    parameters: list[str] = field(default_factory=list)
    """Names or patterns of parameters: each one's weights of a dimension are changed alone
    (dimensions)."""
    change: Literal["zero", "scale", "reinitialize"] = "zero"
    """Set to zero, multiply, or draw anew as a model starts out."""
    by: float = 4.0
    """Factor (scale)."""
    random: bool = True
    """Change as many random weights of the same parameters too, for comparison."""
    seed: int = 0
    """Seed of the random weights, and of drawing anew."""
    evaluation: EvaluationTexts = field(default_factory=EvaluationTexts)
    """What is evaluated."""

    def __post_init__(self) -> None:
        some = bool(self.weights or self.dimensions) or self.scores is not None
        check(some, "weights", "one or more, unless scores or dimensions are given", self.weights)
        check(self.count >= 1, "count", "1 or more", self.count)
        expected = "left out where no scores are given"
        check(self.scores is not None or not self.languages, "languages", expected, self.languages)
        expected = "left out where no dimensions are given"
        check(bool(self.dimensions or not self.parameters), "parameters", expected, self.parameters)
        distinct = len(set(self.dimensions)) == len(self.dimensions)
        check(distinct, "dimensions", "each a different one", self.dimensions)
        check(0 <= self.seed < 2**32, "seed", "from 0 to 2**32 - 1", self.seed)
