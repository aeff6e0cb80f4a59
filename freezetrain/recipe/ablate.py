"""The recipe of removing regions."""

from dataclasses import dataclass, field
from typing import Literal

from freezetrain.recipe.check import check
from freezetrain.recipe.model import ModelSource
from freezetrain.recipe.texts import EvaluationTexts


@dataclass
class AblateRecipe:
    """Evaluate languages with each of some regions set to zero, alone."""

    model: ModelSource
    """The base."""
    regions: list[str] = field(default_factory=list)
    """Region files."""
    scores: str | None = None
    """Folder that `freezetrain score` wrote, to select regions of each ratio from. None: only the
    region files are zeroed, and random regions like them."""
    languages: list[str] = field(default_factory=list)
    """Languages whose scores are added up (scores). Empty: all in the folder."""
    ratios: list[float] = field(default_factory=lambda: [0.01, 0.03, 0.05])
    """Shares of each tensor's entries that are selected from scores."""
    which: list[Literal["top", "bottom", "random"]] = field(
        default_factory=lambda: ["top", "bottom", "random"]
    )
    """What is zeroed at each ratio: the highest scores, the lowest, entries drawn at random. random
    also says whether random regions like each region file are zeroed."""
    random_seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of the random regions, each as large in every tensor as what it is compared with."""
    norms: bool = False
    """Let the weights of norms be selected too (scores)."""
    evaluation: EvaluationTexts = field(default_factory=EvaluationTexts)
    """What is evaluated."""
    prompts: list[str] = field(default_factory=list)
    """Prompts that the model goes on from, with nothing and with each region zeroed."""
    new_tokens: int = 40
    """Tokens generated after each prompt, the likeliest one each time."""

    def __post_init__(self) -> None:
        some = bool(self.regions) or self.scores is not None
        check(some, "regions", "one or more, unless scores are given", self.regions)
        valid = bool(self.ratios) and all(0 < ratio <= 1 for ratio in self.ratios)
        check(valid, "ratios", "above 0 and at most 1", self.ratios)
        if self.scores is None:
            expected = "left out where no scores are given"
            check(not self.languages, "languages", expected, self.languages)
            check(not self.norms, "norms", expected, self.norms)
        else:
            check(bool(self.which), "which", "one or more of top, bottom, random", self.which)
        for name in ("ratios", "which", "random_seeds", "prompts"):
            values = getattr(self, name)
            check(len(set(values)) == len(values), name, "each a different one", values)
        valid = all(0 <= seed < 2**32 for seed in self.random_seeds)
        check(valid, "random_seeds", "from 0 to 2**32 - 1", self.random_seeds)
        check(
            all(map(str.strip, self.prompts)), "prompts", "texts that are not empty", self.prompts
        )
        check(self.new_tokens >= 1, "new_tokens", "1 or more", self.new_tokens)
