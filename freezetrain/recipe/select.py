"""The recipe of selecting a region."""

from dataclasses import MISSING, dataclass, field, fields
from typing import Literal

from freezetrain.recipe.check import check
from freezetrain.recipe.model import ModelSource
from freezetrain.recipe.texts import TextSource


@dataclass
class SelectRecipe:
    """Select regions: from scores, by a set expression, at random, by magnitude or vocabulary."""

    kind: (
        Literal["core", "monolingual", "random", "vocabulary", "magnitude", "expression"] | None
    ) = None
    """core: by the scores of several languages together. monolingual: entries of one language that
    no other language has. random: as many entries of each parameter as another region, anywhere.
    vocabulary: rows of embedding and head for tokens that a language's texts hardly hold.
    magnitude: the largest or smallest weights. None: expression where one is given, else core."""
    expression: str | None = None
    """Sets combined by | & - ^ and parentheses, as in `core - zh` (expression). A language is its
    own top ratio, core that of languages together, any other name a file in regions."""
    regions: str | None = None
    """Folder of region files, which an expression names without their ending (expression)."""
    scores: str | None = None
    """Folder that `freezetrain score` wrote (core, monolingual, expression)."""
    languages: list[str] = field(default_factory=list)
    """Languages whose scores are used. Empty: all in the folder."""
    language: str | None = None
    """The language of a vocabulary region, or of a monolingual one. None: a monolingual region of
    each language."""
    ratio: float = 0.01
    """Share of entries, in (0, 1]."""
    which: Literal["top", "bottom"] = "top"
    """Highest or lowest scores."""
    per: Literal["tensor", "layer", "model"] = "tensor"
    """Within what the ratio holds."""
    unit: Literal["entry", "row", "column", "tensor"] = "entry"
    """What is selected whole."""
    norms: bool = False
    """Let the weights of norms be selected too."""
    like: str | None = None
    """Region file that a random region is to equal in size (random)."""
    seed: int = 0
    """Seed of a random region."""
    model: ModelSource | None = None
    """The base (vocabulary, magnitude)."""
    texts: TextSource = field(default_factory=TextSource)
    """Texts whose training documents are counted (vocabulary)."""
    min_count: int = 5
    """Tokens seen fewer times than this belong to the region (vocabulary)."""

    def __post_init__(self) -> None:
        check(0 < self.ratio <= 1, "ratio", "above 0 and at most 1", self.ratio)
        check(self.min_count >= 1, "min_count", "1 or more", self.min_count)
        self.kind = self.kind or ("expression" if self.expression is not None else "core")
        how = ["ratio", "which", "per", "unit", "norms"]
        needs, may = {
            "core": (["scores"], ["languages", *how]),
            "monolingual": (["scores"], ["language", "languages", "ratio", "norms"]),
            "random": (["like"], ["seed"]),
            "vocabulary": (["model", "language"], ["texts", "min_count"]),
            "magnitude": (["model"], how),
            "expression": (
                ["expression"],
                ["regions", "scores", *(["languages", *how] if self.scores is not None else [])],
            ),
        }[self.kind]
        what = f"{'an' if self.kind == 'expression' else 'a'} {self.kind} region"
        if self.kind == "expression":
            given = self.regions is not None or self.scores is not None
            check(given, "regions", "given, or else scores, to name sets in expression", None)
        for name in needs:
            given = getattr(self, name)
            check(given is not None, name, f"given to select {what}", given)
        for item in fields(self):
            factory = item.default_factory
            default = item.default if factory is MISSING else factory()
            given = getattr(self, item.name)
            used = item.name in ("kind", *needs, *may)
            expected = f"left out: {what} does not use it"
            check(used or given == default, item.name, expected, given)
