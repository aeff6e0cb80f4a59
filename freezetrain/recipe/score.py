"""The recipe of scoring."""

from dataclasses import dataclass, field
from typing import Literal

from freezetrain.recipe.check import check
from freezetrain.recipe.model import ModelSource
from freezetrain.recipe.optimization import Engine
from freezetrain.recipe.texts import TextSource

Method = Literal["taylor", "taylor-abs", "fisher", "magnitude", "wanda"]


@dataclass
class ScoreRecipe:
    """Score how much the loss of each language depends on each weight."""

    model: ModelSource
    """The base."""
    texts: TextSource = field(default_factory=TextSource)
    """Texts; their training documents are scored."""
    languages: list[str] = field(default_factory=list)
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
    """Sequences in one forward and backward pass, over all devices under zero-3 and fsdp2."""
    seed: int = 0
    """Seed of the choice of sequences."""
    engine: Engine = field(default_factory=Engine)
    """On what the model runs. ddp: each device takes its turn at whole batches. zero-3 and fsdp2:
    weights and sums are split over devices, for a model that does not fit on one."""
    cache: str | None = None
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
        expected = "left out: models are scored in eval mode, in which transformers ignores it"
        recomputes = engine.gradient_checkpointing
        check(not recomputes, "engine.gradient_checkpointing", expected, recomputes)
