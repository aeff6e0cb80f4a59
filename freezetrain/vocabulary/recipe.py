"""The recipe of `freezetrain extend`."""

from dataclasses import dataclass, field

from freezetrain.recipe.check import check
from freezetrain.recipe.sources import ModelSource, TextSource
from freezetrain.recipe.text_types import LocalPath, Name

_MOST_PADDING = 2**16


@dataclass
class ExtendRecipe:
    """Add tokens to a base's vocabulary: the model that further pre-training then starts from."""

    model: ModelSource
    """The base."""
    tokens: LocalPath | None = None
    """File with one new token a line."""
    learn: int = 0
    """Learn this many new tokens from the texts of language (instead of tokens)."""
    texts: TextSource = field(default_factory=TextSource)
    """Texts whose training documents new tokens are learned from (learn)."""
    language: Name | None = None
    """The language that new tokens are learned from (learn)."""
    multiple_of: int = 64
    """Pad the embeddings to a multiple of this many rows, which GPUs compute faster."""

    def __post_init__(self) -> None:
        check(self.learn >= 0, "learn", "0 or more", self.learn)
        exactly_one = (self.tokens is None) != (self.learn == 0)
        expected = "given, or else learn a number above 0, and not both"
        check(exactly_one, "tokens", expected, self.tokens)
        named = self.learn == 0 or self.language is not None
        check(named, "language", "given to learn tokens from its texts", self.language)
        valid = 1 <= self.multiple_of <= _MOST_PADDING
        check(valid, "multiple_of", f"from 1 to {_MOST_PADDING}", self.multiple_of)
