"""The recipe of the whole paper."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from freezetrain.analysis.recipe import AblateRecipe, Method, ScoreRecipe
from freezetrain.recipe.check import check, check_factor
from freezetrain.recipe.optimization import Engine
from freezetrain.recipe.sources import EvaluationTexts, ModelSource, TextSource
from freezetrain.recipe.text_types import LocalPath, Name

PAPER_CORE = ("ar", "es", "ru", "zh", "ko", "vi")
"""Languages of the core region in Zhang et al. 2024 (arXiv 2402.14700)."""


@dataclass
class PaperRecipe:
    """The whole paper on any model: find regions, remove them, see where they lie, compare them."""

    # May be others when a run is resumed: they do not change what it computes.
    changeable: ClassVar = ScoreRecipe.changeable

    model: ModelSource
    """The base."""
    texts: TextSource = field(default_factory=TextSource)
    """Texts: training documents are scored, held-out ones evaluated."""
    languages: list[Name] = field(default_factory=list)
    """Languages that are scored; each gets a monolingual region. Empty: all that the texts hold."""
    core_languages: list[Name] = field(default_factory=list)
    """Languages whose scores make the core region. Empty: the paper's (ar es ru zh ko vi), as far
    as they are scored."""
    evaluated: list[Name] = field(default_factory=list)
    """Languages that are evaluated. Empty: those that are scored."""
    methods: list[Method] = field(default_factory=lambda: ["taylor", "taylor-abs"])
    """Scores, made in one pass. Regions are selected by the first; the others are compared."""
    sequence_length: int = 512
    """Tokens in a scored sequence."""
    sequences: int = 100_000
    """Sequences of each language that are scored; all that it has where it has fewer."""
    snapshots: list[int] = field(default_factory=lambda: [10_000])
    """Numbers of sequences after which scores are kept too, ascending."""
    halves: bool = True
    """Score the second half of the sequences apart too, to see how stable regions are."""
    batch: int = 8
    """Sequences of a batch when scores are computed, as of `freezetrain score`."""
    engine: Engine = field(default_factory=Engine)
    """On what is scored; all else runs in one process."""
    ratios: list[float] = field(default_factory=lambda: [0.01, 0.03, 0.05])
    """Shares of entries in the core regions that are removed; the first is looked at closely."""
    monolingual_ratio: float = 0.05
    """Share of entries that a language's region has before those of other languages are taken."""
    random_seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of the random regions, of each ratio, that are removed for comparison."""
    weights: int = 10
    """Single weights of the highest scores, and as many random ones, that are changed alone."""
    scale: float = 4.0
    """Factor that single weights are multiplied by, besides being set to zero."""
    documents: int | None = None
    """Evaluate at most this many held-out documents of each language, as in ablate. None: all."""
    max_length: int = 0
    """Tokens of context in evaluation. 0: the model's context, at most 2048."""
    batch_tokens: int = 4096
    """Tokens in one evaluation batch."""
    prompts: list[str] = field(default_factory=list)
    """Prompts to go on from, with nothing and with each core region removed."""
    new_tokens: int = 40
    """Tokens generated after each prompt."""
    seed: int = 0
    """Seed of the choice of sequences and of random dimensions and weights."""
    cache: LocalPath | None = None
    """Folder of tokenized texts, which runs share. None: FREEZETRAIN_CACHE, or freezetrain in the
    user's cache."""
    workers: int | None = None
    """Processes that tokenize. None: one for each core."""

    def __post_init__(self) -> None:
        valid = 0 < self.monolingual_ratio <= 1
        check(valid, "monolingual_ratio", "above 0 and at most 1", self.monolingual_ratio)
        for name in ("core_languages", "evaluated"):
            given = getattr(self, name)
            check(len(set(given)) == len(given), name, "each named once", given)
        check(bool(self.random_seeds), "random_seeds", "one or more", self.random_seeds)
        check(bool(self.methods), "methods", "one or more", self.methods)
        knows = self.methods[0] != "magnitude"
        expected = "another one first: magnitude knows no language"
        check(knows, "methods", expected, self.methods)
        check(self.weights >= 1, "weights", "1 or more", self.weights)
        check_factor("scale", self.scale, self.model.dtype)
        enough = not self.halves or self.sequences >= 2
        check(enough, "sequences", "2 or more to score halves apart", self.sequences)
        if self.languages:
            stray = [name for name in self.core_languages if name not in self.languages]
            check(not stray, "core_languages", "among languages, which are scored", stray)
        self.scoring()
        self.removal("scores")

    def scoring(self, languages: Sequence[str] = ()) -> ScoreRecipe:
        """All sequences, with a snapshot at their half where halves are compared."""
        marks = {n for n in self.snapshots if n < self.sequences}
        return self._scoring(
            languages,
            methods=list(self.methods),
            sequences=self.sequences,
            snapshots=sorted(marks | ({self.half} if self.halves else set())),
        )

    def second_half(self, languages: Sequence[str]) -> ScoreRecipe:
        """What the snapshot at the half has not seen, by the first method."""
        rest = self.sequences - self.half
        return self._scoring(languages, methods=self.methods[:1], sequences=rest, first=self.half)

    @property
    def half(self) -> int:
        return self.sequences // 2

    def evaluation(self, languages: Sequence[str] = ()) -> EvaluationTexts:
        """Held-out documents of ``languages``."""
        return EvaluationTexts(
            self.texts,
            list(languages),
            documents=self.documents,
            max_length=self.max_length,
            batch_tokens=self.batch_tokens,
        )

    def removal(
        self, scores: str, core: Sequence[str] = (), evaluated: Sequence[str] = ()
    ) -> AblateRecipe:
        """Core regions of each ratio, from the folder ``scores``, and their controls."""
        return AblateRecipe(
            model=self.model,
            scores=scores,
            languages=list(core),
            ratios=self.ratios,
            random_seeds=self.random_seeds,
            evaluation=self.evaluation(evaluated),
            prompts=self.prompts,
            new_tokens=self.new_tokens,
        )

    def _scoring(self, languages: Sequence[str], **more: object) -> ScoreRecipe:
        return ScoreRecipe(
            model=self.model,
            texts=self.texts,
            languages=list(languages),
            sequence_length=self.sequence_length,
            batch=self.batch,
            seed=self.seed,
            engine=self.engine,
            cache=self.cache,
            workers=self.workers,
            **more,  # type: ignore[arg-type]
        )
