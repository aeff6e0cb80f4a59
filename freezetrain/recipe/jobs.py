"""Recipes of the shorter verbs."""

from dataclasses import dataclass, field
from typing import Literal

from freezetrain.recipe.benchmarks import Benchmarks
from freezetrain.recipe.check import check
from freezetrain.recipe.model import ModelSource
from freezetrain.recipe.texts import EvaluationTexts, TextSource


@dataclass
class ExtendRecipe:
    """Add tokens to a base's vocabulary: the model that further pre-training then starts from."""

    model: ModelSource
    """The base."""
    tokens: str | None = None
    """File with one new token a line."""
    learn: int = 0
    """Learn this many new tokens from the texts of language (instead of tokens)."""
    texts: TextSource = field(default_factory=TextSource)
    """Texts whose training documents new tokens are learned from (learn)."""
    language: str | None = None
    """The language that new tokens are learned from (learn)."""
    multiple_of: int = 64
    """Pad the embeddings to a multiple of this many rows, which GPUs compute faster."""

    def __post_init__(self) -> None:
        check(self.learn >= 0, "learn", "0 or more", self.learn)
        one = (self.tokens is None) != (self.learn == 0)
        expected = "given, or else learn a number above 0, and not both"
        check(one, "tokens", expected, self.tokens)
        named = self.learn == 0 or self.language is not None
        check(named, "language", "given to learn tokens from its texts", self.language)
        check(self.multiple_of >= 1, "multiple_of", "1 or more", self.multiple_of)


@dataclass
class ForgettingRecipe:
    """Compare models with a base: what did each forget, and gain on the target language?"""

    base: ModelSource
    """Model before further pre-training."""
    models: list[ModelSource]
    """Models after it, each with its own tokenizer."""
    target: str | None = None
    """Target language; all others are held out. None: all are held out."""
    evaluation: EvaluationTexts = field(default_factory=EvaluationTexts)
    """What is evaluated."""
    benchmarks: Benchmarks = field(default_factory=Benchmarks)
    """Which tasks of lm-evaluation-harness are run as well."""

    def __post_init__(self) -> None:
        check(bool(self.models), "models", "one or more", self.models)


@dataclass
class VerifyRecipe:
    """Check that every frozen entry of a region is bit-identical in two model folders."""

    base: str
    """Folder of the base, in Hugging Face format."""
    adapted: str
    """Folder of the adapted model."""
    region: str
    """Region file."""
    clamp: float | None = None
    """Value that the region was set to before it was frozen. None: the base's values."""
    rounded_to: Literal["bfloat16", "float16"] | None = None
    """Compare with the base's values rounded to this type, where the adapted model was trained in
    16 bits and the base is stored in 32. None: with the very values."""


@dataclass
class ReportRecipe:
    """Show runs side by side in one page: what each gained, and what it forgot."""

    runs: list[str]
    """Folders that train, forgetting or quickstart left, or forgetting.json files of a tracker."""
    names: list[str] = field(default_factory=list)
    """Name of each run. Empty: the shortest endings of their paths that tell them apart."""

    def __post_init__(self) -> None:
        check(bool(self.runs), "runs", "one or more", self.runs)


@dataclass
class InfoRecipe:
    """Say what a region or score file holds, or what freezetrain sees in a model folder."""

    path: str
    """A region file, a score file or a model folder."""


@dataclass
class QuickstartRecipe:
    """The paper in minutes: find the core region, test it, freeze it, watch 30 languages."""

    model: str | None = None
    """Folder or hub id of any Hugging Face causal LM. None: the small base that comes with
    freezetrain."""
    texts: TextSource = field(default_factory=TextSource)
    """Texts to score, train and evaluate on."""
    target: str = "zh"
    """Language to adapt to."""
    score_languages: list[str] = field(default_factory=lambda: ["en", "es", "ru", "de", "ja", "ko"])
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

    def __post_init__(self) -> None:
        check(0 < self.ratio <= 1, "ratio", "above 0 and at most 1", self.ratio)
        check(self.steps >= 1, "steps", "1 or more", self.steps)
        check(bool(self.score_languages), "score_languages", "one or more", self.score_languages)
        check(self.sequence_length >= 2, "sequence_length", "2 or more", self.sequence_length)
        rate = self.learning_rate
        check(rate is None or 0 < rate < 1e3, "learning_rate", "a number above 0", rate)
        valid = 0 <= self.seed < 2**32 - self.seeds
        check(valid, "seed", "from 0 to 2**32 - 1", self.seed)
        check(self.seeds >= 1, "seeds", "1 or more", self.seeds)
