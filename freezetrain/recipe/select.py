"""The recipe of selecting a region."""

from dataclasses import MISSING, dataclass, field, fields
from typing import Literal

from freezetrain.recipe.check import check
from freezetrain.recipe.model import ModelSource
from freezetrain.recipe.texts import TextSource

Kind = Literal["core", "monolingual", "random", "vocabulary", "magnitude", "layers", "expression"]


@dataclass
class SelectRecipe:
    """Select regions: from scores, sets, at random, by magnitude, vocabulary, or whole blocks."""

    kind: Kind | None = None
    """core: by the scores of several languages together. monolingual: entries of one language that
    no other language has. random: as many entries of each parameter as another region (like), or a
    ratio of a model's entries, rows, columns or tensors (model), anywhere.
    vocabulary: rows of embedding and head for tokens that a language's texts hardly hold.
    magnitude: the largest or smallest weights. layers: the first or last decoder blocks, whole.
    None: expression where one is given, else core."""
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
    """Region file that a random region is to equal in size (random; else model)."""
    seed: int = 0
    """Seed of a random region."""
    first: int = 0
    """How many decoder blocks, from the first one on (layers)."""
    last: int = 0
    """How many decoder blocks, up to the last one (layers)."""
    model: ModelSource | None = None
    """The base (vocabulary, magnitude, layers; random without like)."""
    texts: TextSource = field(default_factory=TextSource)
    """Texts whose training documents are counted (vocabulary)."""
    min_count: int = 5
    """Tokens seen fewer times than this belong to the region (vocabulary)."""

    def __post_init__(self) -> None:
        check(0 < self.ratio <= 1, "ratio", "above 0 and at most 1", self.ratio)
        check(self.min_count >= 1, "min_count", "1 or more", self.min_count)
        self.kind = self.kind or ("expression" if self.expression is not None else "core")
        how = ["ratio", "which", "per", "unit", "norms"]
        random = ["model"], ["seed", *(name for name in how if name != "which")]
        needs, may = {
            "core": (["scores"], ["languages", *how]),
            "monolingual": (["scores"], ["language", "languages", "ratio", "norms"]),
            "random": (["like"], ["seed"]) if self.like is not None else random,
            "vocabulary": (["model", "language"], ["texts", "min_count"]),
            "magnitude": (["model"], how),
            "layers": (["model"], ["first", "last", "norms"]),
            "expression": (
                ["expression"],
                ["regions", "scores", *(["languages", *how] if self.scores is not None else [])],
            ),
        }[self.kind]
        what = f"{'an' if self.kind == 'expression' else 'a'} {self.kind} region"
        what += " like another" if self.like is not None else ""
        if self.kind == "expression":
            given = self.regions is not None or self.scores is not None
            check(given, "regions", "given, or else scores, to name sets in expression", None)
        if self.kind == "random":
            given = self.like is not None or self.model is not None
            check(given, "like", "given, or else model, to select a random region", None)
        if self.kind == "layers":
            for name in ("first", "last"):
                check(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
            expected = "1 or more, or else last, to select whole decoder blocks"
            check(self.first + self.last > 0, "first", expected, self.first)
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
