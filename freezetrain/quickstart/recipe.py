"""The recipe of `freezetrain quickstart`."""

from dataclasses import dataclass, field

from freezetrain.recipe.check import check
from freezetrain.recipe.sources import BUILT_IN_MODEL, TextSource
from freezetrain.recipe.text_types import LocalPath, Name


@dataclass
class QuickstartRecipe:
    """The paper in minutes: find the core region, test it, freeze it, watch 30 languages."""

    model: LocalPath | None = None
    """Folder or hub id of any Hugging Face causal LM. None, or built-in: the small base that comes
    with freezetrain."""
    texts: TextSource = field(default_factory=TextSource)
    """Texts to score, train and evaluate on."""
    target: Name = "zh"
    """Language to adapt to."""
    score_languages: list[Name] = field(
        default_factory=lambda: ["en", "es", "ru", "de", "ja", "ko"]
    )
    """Languages whose scores make the core region."""
    ratio: float = 0.01
    """Share of entries in the core region, in (0, 1]."""
    steps: int = 40
    """Optimizer steps of further pre-training."""
    learning_rate: float | None = None
    """Peak learning rate of further pre-training. None: 5e-4 for the built-in base, 5e-5, the
    paper's, for any other."""
    sequence_length: int = 128
    """Tokens in a training or scoring sequence."""
    seed: int = 0
    """Seed of the random region and of the first run's data order."""
    seeds: int = 3
    """Runs of each variant, each with another data order: what differs less than they do is
    noise."""
    minutes: float | None = 15.0
    """What all of it may take. The model is measured first; what does not fit is left out (runs of
    a variant, steps, sequences that are scored, documents, languages), which is said. None: all."""

    @property
    def built_in(self) -> bool:
        """Whether the model is the base that comes with freezetrain."""
        return self.model in (None, BUILT_IN_MODEL)

    def __post_init__(self) -> None:
        check(0 < self.ratio <= 1, "ratio", "above 0 and at most 1", self.ratio)
        check(self.steps >= 1, "steps", "1 or more", self.steps)
        check(bool(self.score_languages), "score_languages", "one or more", self.score_languages)
        check(self.sequence_length >= 2, "sequence_length", "2 or more", self.sequence_length)
        rate = self.learning_rate
        check(rate is None or 0 < rate < 1e3, "learning_rate", "a number above 0", rate)
        minutes = self.minutes is None or 0 < self.minutes < 1e6
        check(minutes, "minutes", "a number above 0", self.minutes)
        check(1 <= self.seeds <= 1000, "seeds", "from 1 to 1000", self.seeds)
        valid = 0 <= self.seed < 2**32 - self.seeds
        check(valid, "seed", "from 0 to 2**32 - 1, those of all runs too", self.seed)
