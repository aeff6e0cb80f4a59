"""The recipe of converting."""

from dataclasses import dataclass
from typing import Literal

from freezetrain.recipe.check import check
from freezetrain.recipe.model import ModelSource


@dataclass
class ConvertRecipe:
    """Convert a region or scores to or from the layout of the paper's released code."""

    source: str
    """A region or score file, to the paper's layout; a folder of {parameter}.pt files, from it."""
    to: Literal["paper", "freezetrain"]
    """paper: a folder of {parameter}.pt tensors, named masks or scores. freezetrain: a region or
    score file."""
    language: str | None = None
    """The language of scores from the paper's layout, which does not say it; it names the file."""
    model: ModelSource | None = None
    """The base of what comes from the paper's layout: names and shapes are checked against it,
    names become its own, and it is recorded. None: names stay, and no base is known."""

    def __post_init__(self) -> None:
        if self.to == "paper":
            for name in ("language", "model"):
                given = getattr(self, name)
                check(given is None, name, "left out: the paper's layout does not hold it", given)
