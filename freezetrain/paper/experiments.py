"""The experiments of the paper: scores of every language, regions of them, and what these do."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from freezetrain.analysis.ablate import Ablation, ablate_regions, plan_removals
from freezetrain.analysis.dimensions import Dimensions, ZeroedDimensions, find_dimensions
from freezetrain.analysis.effects import (
    NOTHING,
    LanguageFigures,
    each_alone,
    mean_effect,
    selectivity,
    unchanged,
)
from freezetrain.analysis.overlap import compare_regions
from freezetrain.analysis.perturb import (
    Perturbations,
    Target,
    dimension_targets,
    perturbations,
    weight_targets,
)
from freezetrain.analysis.recipe import AblateRecipe, PerturbRecipe
from freezetrain.analysis.score import score_languages, scores_folder
from freezetrain.evaluation import Document
from freezetrain.paper.recipe import PaperRecipe
from freezetrain.paper.results import Halves, MonolingualSelectivity, Overlaps
from freezetrain.ranks import is_first_rank
from freezetrain.recipe.sources import EvaluationTexts
from freezetrain.regions import Region, block_parameters, decoder_blocks
from freezetrain.regions.blocks import is_norm
from freezetrain.regions.overlap import expected_jaccard
from freezetrain.regions.residual_stream import hidden_size
from freezetrain.regions.slices import fullest, random_slices, recurring
from freezetrain.scoring import Scores, magnitude_scores, monolingual, select
from freezetrain.scoring.scores import language_scores
from freezetrain.scoring.weights import top_weights


class PaperScores:
    """Scores of every language, made where they are not there yet, read when they are asked for.

    ``made``: language → how its scores, by the first method, came about. ``core``: languages of the
    core. ``halved``: languages that have as many sequences as asked for, so that the second half is
    another half. All ranks make one together.
    """

    def __init__(
        self, recipe: PaperRecipe, folder: Path, languages: list[str], core: list[str]
    ) -> None:
        self.languages = languages
        self.core = core
        self._recipe = recipe.scoring(languages)
        self._folder = folder / "scores"
        self._second = folder / "scores-second-half"
        self.made: Mapping[str, Any] = score_languages(self._recipe, self._folder)[
            recipe.methods[0]
        ]
        self.halved = [
            name
            for name in languages
            if recipe.halves and self.made[name]["sequences"] == recipe.sequences
        ]
        if self.halved:
            score_languages(recipe.second_half(self.halved), self._second)

    @property
    def snapshots(self) -> list[int]:
        """Numbers of sequences at which all the core's languages have scores, ascending."""
        fewest = min(self.made[name]["sequences"] for name in self.core)
        return [count for count in self._recipe.snapshots if count < fewest]

    def folder(self, method: str | None = None, sequences: int | None = None) -> Path:
        """Where the scores by ``method`` (None: the first) after so many ``sequences`` lie."""
        return scores_folder(self._recipe, self._folder, method, sequences)

    def by_language(self) -> dict[str, Scores]:
        """Language → its scores."""
        return language_scores(self.folder(), self.languages)

    def core_sum(self, method: str | None = None, sequences: int | None = None) -> Scores:
        """Of the core's languages together, as in :meth:`folder`."""
        return Scores.sum(list(language_scores(self.folder(method, sequences), self.core).values()))

    def halves(self) -> dict[str, tuple[Scores, Scores]]:
        """Language → scores of its first and of its second half of the sequences."""
        if not self.halved:
            return {}
        # Of a language that has fewer sequences there may be no scores at the half.
        at_half = self.folder(sequences=self._recipe.sequences // 2)
        first, second = (language_scores(folder, self.halved) for folder in (at_half, self._second))
        return {name: (first[name], second[name]) for name in self.halved}


_TOP = 0.01  # of rows and columns, and of dimensions, that count as the fullest

_DIMENSIONS = 3  # of the stream that are zeroed whole

_FIRST_BLOCKS = 2  # whose norms are scaled at these: the paper's weight lies in the second one


@dataclass
class Study:
    """What all experiments look at. ``regions``: folder that regions are left in."""

    recipe: PaperRecipe
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    documents: dict[str, list[Document]]
    evaluation: EvaluationTexts
    scores: PaperScores
    regions: Path

    @property
    def ratio(self) -> float:
        """Of the core that is looked at closely."""
        return self.recipe.ratios[0]

    @cached_property
    def before(self) -> LanguageFigures:
        """What the model gives as it is."""
        return unchanged(self.model, self.documents, self.evaluation)

    def core(self, ratio: float) -> Region:
        """Highest scores of the core's languages together."""
        name = f"core-{ratio:g}"
        return self.kept("", [name], lambda: {name: select(self.scores.core_sum(), ratio)})[name]

    def by_language(self) -> dict[str, Region]:
        """Highest scores of each language."""
        return self.kept(
            f"languages-{self.ratio:g}",
            self.scores.languages,
            lambda: {
                language: select(scores, self.ratio)
                for language, scores in self.scores.by_language().items()
            },
        )

    def kept(
        self, folder: str, names: Sequence[str], make: Callable[[], Mapping[str, Region]]
    ) -> dict[str, Region]:
        """Regions from their files, or made and left there."""
        paths = {name: self.regions / folder / f"{name}.safetensors" for name in names}
        if all(path.exists() for path in paths.values()):
            return {name: Region.load(path) for name, path in paths.items()}
        regions = dict(make())
        for name, path in paths.items() if is_first_rank() else ():
            path.parent.mkdir(parents=True, exist_ok=True)
            regions[name].save(path, overwrite=True)  # the same, of a start that was killed
        return regions

    def changed(
        self, targets: Sequence[Target], change: Literal["zero", "scale", "reinitialize"]
    ) -> Perturbations | None:
        """What it does to change each of ``targets`` alone, and as many random ones."""
        if not targets:
            return None
        recipe = self.recipe
        plan = PerturbRecipe(
            model=recipe.model,
            scores=str(self.scores.folder()),
            change=change,
            by=recipe.scale,
            seed=recipe.seed,
        )
        return perturbations(
            self.model, self.documents, self.evaluation, targets, plan, self.before
        )


def evaluations(study: Study) -> dict[str, int]:
    """Part → about how many times the documents are evaluated in it."""
    recipe, scored = study.recipe, len(study.scores.languages)
    removed = len(plan_removals(_removal(study)))
    changed = 2 * recipe.weights  # as many random ones
    return {
        "ablation": 1 + removed,
        "selectivity": 2 * scored if scored > 1 else 0,
        "dimensions": 1 + len(recipe.random_seeds),
        "weights-zero": changed,
        "weights-scale": changed,
        "weights-reinitialize": changed,
        "weights-dimensions": 2 * _DIMENSIONS,
        "weights-norms": 2 * 2 * _FIRST_BLOCKS,
    }


def _removal(study: Study) -> AblateRecipe:
    scores = study.scores
    return study.recipe.removal(str(scores.folder()), scores.core, list(study.documents))


def zero_core_regions(study: Study) -> Ablation:
    """Core regions of each ratio, lowest scores and random ones, removed."""
    recipe = study.recipe
    for ratio in recipe.ratios:
        study.core(ratio)  # left as a file, for whoever goes on to freeze it
    return ablate_regions(_removal(study), study.model, study.tokenizer, study.documents)


def zero_monolingual_regions(study: Study) -> MonolingualSelectivity | None:
    """The region that each language has for itself, and as many random entries, removed."""
    scores, ratio = study.scores, study.recipe.monolingual_ratio
    if len(scores.languages) < 2:
        return None
    regions = study.kept(
        "monolingual", scores.languages, lambda: monolingual(scores.by_language(), ratio)
    )
    seed = study.recipe.random_seeds[0]
    controls = {name: region.random_like(seed) for name, region in regions.items()}
    effects = selectivity(
        study.model, study.documents, regions, controls, study.evaluation, study.before
    )
    return MonolingualSelectivity(**vars(effects), ratio=ratio)


def zero_dimensions(study: Study) -> Dimensions:
    """Where the core and each language's entries gather; the fullest rows and columns removed."""
    core, model, seeds = study.core(study.ratio), study.model, study.recipe.random_seeds
    dimensions = find_dimensions({"core": core, **study.by_language()}, model, _TOP, seed=seeds[0])
    removed = {"fullest": fullest(core, _TOP, model)}
    removed |= {f"random {seed}": random_slices(core, _TOP, model, seed) for seed in seeds}
    figures = {NOTHING: study.before} | each_alone(
        model, study.documents, study.evaluation, removed.items(),
        number=len(removed), what="zero the fullest rows and columns",
    )  # fmt: skip
    zeroed = ZeroedDimensions(
        entries=removed["fullest"].count,
        fullest=mean_effect(figures, ["fullest"]),
        random=[mean_effect(figures, [f"random {seed}"]) for seed in seeds],
    )
    return replace(dimensions, ablated=zeroed)


def weight_changes(study: Study) -> dict[str, Callable[[], Perturbations | None]]:
    """Change each alone: weights of the highest scores, dimensions, norms at the first dimension.

    What is done → function that does it.
    """
    model, blocks = study.model, decoder_blocks(study.model)[:_FIRST_BLOCKS]

    def ranked() -> list[Target]:
        scores = study.scores.core_sum()
        return weight_targets(model, top_weights(scores, study.recipe.weights, norms=True))

    def common(count: int) -> list[int]:
        dimensions, _, _ = recurring(study.by_language(), model, _TOP)
        return [dimension.dimension for dimension in dimensions[:count]]

    def norms() -> list[Target]:
        names = [
            name
            for name, weight in block_parameters(model, norms=True).items()
            if is_norm(model, name)
            and weight.shape == (hidden_size(model),)
            and name.startswith(tuple(f"{block}." for block, _ in blocks))
        ]
        return dimension_targets(model, common(1), names) if names else []

    return {
        "zero": lambda: study.changed(ranked(), "zero"),
        "scale": lambda: study.changed(ranked(), "scale"),
        "reinitialize": lambda: study.changed(ranked(), "reinitialize"),
        "dimensions": lambda: study.changed(
            dimension_targets(model, common(_DIMENSIONS), []), "zero"
        ),
        "norms": lambda: study.changed(norms(), "scale"),
    }


def overlaps(study: Study) -> Overlaps:
    """Regions of languages, of numbers of sequences, of methods and of halves of the texts."""
    scores, ratio, recipe = study.scores, study.ratio, study.recipe
    core = study.core(ratio)
    samples = {
        f"{count:,} sequences": select(scores.core_sum(sequences=count), ratio)
        for count in scores.snapshots
    }
    methods: dict[str, Region] = {recipe.methods[0]: core}
    methods |= {method: select(scores.core_sum(method), ratio) for method in recipe.methods[1:]}
    methods.setdefault("magnitude", select(magnitude_scores(study.model), ratio))
    # Within each tensor every region is as large: only over the whole model shares differ.
    whole = {"core": select(scores.core_sum(), ratio, per="model")}
    whole |= {
        language: select(own, ratio, per="model")
        for language, own in scores.by_language().items()
        if language in scores.core
    }
    return Overlaps(
        languages=compare_regions(study.by_language()),
        samples=compare_regions({**samples, "all": core}) if samples else None,
        methods=compare_regions(methods),
        halves=_halves(scores.halves(), ratio),
        whole_model=compare_regions(whole),
    )


def _halves(scores: Mapping[str, tuple[Scores, Scores]], ratio: float) -> Halves | None:
    if not scores:
        return None
    pairs = [(select(first, ratio), select(second, ratio)) for first, second in scores.values()]
    return Halves(
        names=list(scores),
        jaccard=[first.jaccard(second) for first, second in pairs],
        expected=[expected_jaccard(first, second) for first, second in pairs],
    )
