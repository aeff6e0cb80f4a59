"""The scores that the paper's parts are made from: all, snapshots, methods, halves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from freezetrain.analysis.ablate import NOTHING, effect, remove
from freezetrain.analysis.alone import LanguageFigures, each_alone
from freezetrain.analysis.dimensions import dimensions
from freezetrain.analysis.overlap import overlap
from freezetrain.analysis.perturb import Target, dimension_targets, perturbations, weight_targets
from freezetrain.analysis.recipe import PerturbRecipe
from freezetrain.analysis.score import score_languages, scores_folder
from freezetrain.analysis.selectivity import selectivity
from freezetrain.evaluation import Document
from freezetrain.paper.recipe import PaperRecipe
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

    ``made``: language → how its scores, by the first method, came about. ``core``: its languages.
    All ranks make one together.
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
        # Of a language with fewer sequences the second half is not another half.
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

    def of(self) -> dict[str, Scores]:
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
        first, second = (language_scores(at, self.halved) for at in (at_half, self._second))
        return {name: (first[name], second[name]) for name in self.halved}


_TOP = 0.01  # of rows and columns, and of dimensions, that count as the fullest

_DIMENSIONS = 3  # of the stream that are zeroed whole

_FIRST_BLOCKS = 2  # whose norms are scaled at these: the paper's weight lies in the second one


@dataclass
class Study:
    """What all parts look at. ``regions``: folder that regions are left in."""

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
        return each_alone(
            self.model, self.documents, self.evaluation, [(NOTHING, Region({}))],
            number=1, what="nothing changed",
        )[NOTHING]  # fmt: skip

    def core(self, ratio: float) -> Region:
        """Highest scores of the core's languages together."""
        name = f"core-{ratio:g}"
        return self.kept("", [name], lambda: {name: select(self.scores.core_sum(), ratio)})[name]

    def by_language(self) -> dict[str, Region]:
        """Highest scores of each language."""
        return self.kept(
            f"languages-{self.ratio:g}",
            self.scores.languages,
            lambda: {name: select(of, self.ratio) for name, of in self.scores.of().items()},
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
    ) -> dict[str, Any] | None:
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


def parts(study: Study) -> dict[tuple[str, ...], Callable[[], Any]]:
    """Place in the results → what makes them, in the order of the paper."""
    return {
        ("ablation",): lambda: _ablation(study),
        ("selectivity",): lambda: _selectivity(study),
        ("dimensions",): lambda: _dimensions(study),
        **{("weights", name): make for name, make in _weights(study).items()},
        ("overlap",): lambda: _overlap(study),
    }


def _ablation(study: Study) -> dict[str, Any]:
    """Core regions of each ratio, lowest scores and random ones, removed."""
    recipe = study.recipe
    for ratio in recipe.ratios:
        study.core(ratio)  # left as a file, for whoever goes on to freeze it
    plan = recipe.removal(str(study.scores.folder()), study.scores.core, list(study.documents))
    return remove(plan, study.model, study.tokenizer, study.documents)


def _selectivity(study: Study) -> dict[str, Any] | None:
    """The region that each language has for itself, and as many random entries, removed."""
    scores, ratio = study.scores, study.recipe.monolingual_ratio
    if len(scores.languages) < 2:
        return None
    regions = study.kept("monolingual", scores.languages, lambda: monolingual(scores.of(), ratio))
    seed = study.recipe.random_seeds[0]
    controls = {name: region.random_like(seed) for name, region in regions.items()}
    found = selectivity(
        study.model, study.documents, regions, controls, study.evaluation, study.before
    )
    return {"ratio": ratio, **found}


def _dimensions(study: Study) -> dict[str, Any]:
    """Where the core and each language's entries gather; the fullest rows and columns removed."""
    core, model = study.core(study.ratio), study.model
    found = dimensions(
        {"core": core, **study.by_language()}, model, _TOP, seed=study.recipe.random_seeds[0]
    )
    removed = {"fullest": fullest(core, _TOP, model)}
    removed |= {
        f"random {seed}": random_slices(core, _TOP, model, seed)
        for seed in study.recipe.random_seeds
    }
    figures = {NOTHING: study.before} | each_alone(
        model, study.documents, study.evaluation, removed.items(),
        number=len(removed), what="zero the fullest rows and columns",
    )  # fmt: skip
    effects = {name: effect(figures, [name]) for name in removed}
    sizes = {name: region.count for name, region in removed.items()}
    ablated = {
        "entries": sizes.pop("fullest"),
        "fullest": effects.pop("fullest"),
        "random": list(effects.values()),
    }
    return {**found, "ablated": ablated}


def _weights(study: Study) -> dict[str, Callable[[], Any]]:
    """What is changed alone: weights of the highest scores, dimensions, norms at the first one."""
    model, blocks = study.model, decoder_blocks(study.model)[:_FIRST_BLOCKS]

    def ranked() -> list[Target]:
        scores = study.scores.core_sum()
        return weight_targets(model, top_weights(scores, study.recipe.weights, norms=True))

    def common(count: int) -> list[int]:
        often, _, _ = recurring(study.by_language(), model, _TOP)
        return [one.dimension for one in often[:count]]

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


def _overlap(study: Study) -> dict[str, Any]:
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
    halves = {
        name: (select(first, ratio), select(second, ratio))
        for name, (first, second) in scores.halves().items()
    }
    # Within each tensor every region is as large: only over the whole model shares differ.
    whole = {"core": select(scores.core_sum(), ratio, per="model")}
    whole |= {
        name: select(of, ratio, per="model")
        for name, of in scores.of().items()
        if name in scores.core
    }
    return {
        "languages": overlap(study.by_language()),
        "samples": overlap({**samples, "all": core}) if samples else None,
        "methods": overlap(methods),
        "halves": _halves(halves),
        "whole model": overlap(whole),
    }


def _halves(regions: Mapping[str, tuple[Region, Region]]) -> dict[str, Any] | None:
    if not regions:
        return None
    return {
        "names": list(regions),
        "jaccard": [first.jaccard(second) for first, second in regions.values()],
        "expected": [expected_jaccard(first, second) for first, second in regions.values()],
    }
