"""The recipes of the verbs that find regions and show what they do."""

from dataclasses import MISSING, dataclass, field, fields
from typing import ClassVar, Literal

from freezetrain.recipe.check import check, check_factor
from freezetrain.recipe.optimization import Engine
from freezetrain.recipe.sources import EvaluationTexts, ModelSource, TextSource
from freezetrain.recipe.text_types import LocalPath, Name

Method = Literal["taylor", "taylor-abs", "fisher", "magnitude", "wanda"]


@dataclass
class ScoreRecipe:
    """Score how much the loss of each language depends on each weight."""

    # May be others when a run is resumed: they do not change what it computes.
    changeable: ClassVar = ("engine.devices", "workers", "cache")

    model: ModelSource
    """The base."""
    texts: TextSource = field(default_factory=TextSource)
    """Texts; their training documents are scored."""
    languages: list[Name] = field(default_factory=list)
    """Languages to score, each into a file of its own. Empty: all that the texts hold."""
    methods: list[Method] = field(default_factory=lambda: ["taylor"])
    """What is summed for each weight; taylor is |weight x sum of gradients|, the paper's. Several
    are made in one pass, and each gets a folder of its own."""
    embeddings: bool = False
    """Also score what lies outside the decoder blocks, embeddings, output head and last norm, by
    all methods but wanda. It is never selected into a region; a penalty (EWC) can use it."""
    sequence_length: int = 512
    """Tokens in a sequence."""
    sequences: int = 1000
    """Sequences of each language; all that it has where it has fewer."""
    snapshots: list[int] = field(default_factory=list)
    """Numbers of sequences, ascending, after which the scores so far are kept too, in folders
    at-<number>. A batch ends at each, which taylor-abs and fisher see if it is cut short."""
    first: int = 0
    """Leave out so many of the drawn sequences, which another run has scored."""
    batch: int = 8
    """Sequences of a batch, over all devices under zero-3 and fsdp2: taylor-abs and fisher sum over
    batches. What is held at once is less: a device runs passes of 1,024 tokens on a CPU, 4,096 on a
    GPU, and of one sequence at least."""
    seed: int = 0
    """Seed of the choice of sequences."""
    engine: Engine = field(default_factory=Engine)
    """On what the model runs. ddp: each device takes its turn at whole batches. zero-3 and fsdp2:
    weights and sums are split over devices, for a model that does not fit on one."""
    cache: LocalPath | None = None
    """Folder of tokenized texts, which runs share. None: FREEZETRAIN_CACHE, or freezetrain in the
    user's cache."""
    workers: int | None = None
    """Processes that tokenize. None: one for each core."""

    def __post_init__(self) -> None:
        for name in ("languages", "methods"):
            given = getattr(self, name)
            check(len(set(given)) == len(given), name, "each named once", given)
        check(bool(self.methods), "methods", "one or more", self.methods)
        others = self.methods != ["wanda"]
        expected = "false: wanda scores the linear layers of the decoder blocks alone"
        check(others or not self.embeddings, "embeddings", expected, self.embeddings)
        check(self.sequence_length >= 2, "sequence_length", "2 or more", self.sequence_length)
        check(self.sequences >= 1, "sequences", "1 or more", self.sequences)
        ascending = all(a < b for a, b in zip([0, *self.snapshots], self.snapshots, strict=False))
        below = ascending and all(number < self.sequences for number in self.snapshots)
        expected = f"ascending, from 1 to below sequences, {self.sequences}"
        check(below, "snapshots", expected, self.snapshots)
        check(self.first >= 0, "first", "0 or more", self.first)
        check(self.batch >= 1, "batch", "1 or more", self.batch)
        check(0 <= self.seed < 2**32, "seed", "from 0 to 2**32 - 1", self.seed)
        check(self.workers is None or self.workers >= 1, "workers", "1 or more", self.workers)
        self._check_engine(self.engine)

    def _check_engine(self, engine: Engine) -> None:
        without = engine.kind not in ("zero-1", "zero-2")
        expected = "auto, ddp, fsdp2 or zero-3: the others split an optimizer, and scoring has none"
        check(without, "engine.kind", expected, engine.kind)
        expected = "none, or all: scoring has no optimizer"
        check(engine.offload != "optimizer", "engine.offload", expected, engine.offload)
        engine.require_untrained()


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
    regions: LocalPath | None = None
    """Folder of region files, which an expression names without their ending (expression)."""
    scores: LocalPath | None = None
    """Folder that `freezetrain score` wrote (core, monolingual, expression)."""
    languages: list[Name] = field(default_factory=list)
    """Languages whose scores are used. Empty: all in the folder."""
    language: Name | None = None
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
    like: LocalPath | None = None
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
        check(0 <= self.seed < 2**32, "seed", "from 0 to 2**32 - 1", self.seed)
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


@dataclass
class AblateRecipe:
    """Evaluate languages with each of some regions set to zero, alone."""

    model: ModelSource
    """The base."""
    regions: list[LocalPath] = field(default_factory=list)
    """Region files."""
    scores: LocalPath | None = None
    """Folder that `freezetrain score` wrote, to select regions of each ratio from. None: only the
    region files are zeroed, and random regions like them."""
    languages: list[Name] = field(default_factory=list)
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
    scores: LocalPath | None = None
    """Folder that `freezetrain score` wrote: the weights of the highest scores of the whole model
    are changed."""
    languages: list[Name] = field(default_factory=list)
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
        check_factor("by", self.by, self.model.dtype)
        expected = "left out where no scores are given"
        check(self.scores is not None or not self.languages, "languages", expected, self.languages)
        expected = "left out where no dimensions are given"
        check(bool(self.dimensions or not self.parameters), "parameters", expected, self.parameters)
        distinct = len(set(self.dimensions)) == len(self.dimensions)
        check(distinct, "dimensions", "each a different one", self.dimensions)
        check(0 <= self.seed < 2**32, "seed", "from 0 to 2**32 - 1", self.seed)


@dataclass
class OverlapRecipe:
    """Compare regions: how much do they have in common, and where does each lie?"""

    regions: list[LocalPath]
    """Region files, or folders of them; of any models whose parameters have the same shapes."""
    names: list[str] = field(default_factory=list)
    """Name of each region. Empty: the shortest endings of their paths that tell them apart."""

    def __post_init__(self) -> None:
        check(bool(self.regions), "regions", "one or more", self.regions)


@dataclass
class ConvertRecipe:
    """Convert a region or scores to or from the layout of the paper's released code."""

    source: LocalPath
    """A region or score file, to the paper's layout; a folder of {parameter}.pt files, from it."""
    to: Literal["paper", "freezetrain"]
    """paper: a folder of {parameter}.pt tensors, named masks or scores. freezetrain: a region or
    score file."""
    language: Name | None = None
    """The language of scores from the paper's layout, which does not say it; it names the file."""
    model: ModelSource | None = None
    """The base of what comes from the paper's layout: names and shapes are checked against it,
    names become its own, and it is recorded. None: names stay, and no base is known."""

    def __post_init__(self) -> None:
        if self.to == "paper":
            for name in ("language", "model"):
                given = getattr(self, name)
                check(given is None, name, "left out: the paper's layout does not hold it", given)


@dataclass
class VerifyRecipe:
    """Check that every frozen entry of a region is bit-identical in two model folders."""

    base: LocalPath
    """Folder of the base, in Hugging Face format."""
    adapted: LocalPath
    """Folder of the adapted model."""
    region: LocalPath
    """Region file."""
    clamp: float | None = None
    """Value that the region was set to before it was frozen. None: the base's values."""
    rounded_to: Literal["bfloat16", "float16"] | None = None
    """Compare with the base's values rounded to this type, where the adapted model was trained in
    16 bits and the base is stored in 32. None: with the very values."""


@dataclass
class InfoRecipe:
    """Say what a region or score file holds, or what freezetrain sees in a model folder."""

    path: LocalPath
    """A region file, a score file or a model folder."""
