"""What changing a region does to every language: one region at a time, and means over regions."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import fmean, stdev

from transformers import PreTrainedModel

from freezetrain.errors import CheckError, UserError, near_misses
from freezetrain.evaluation import Document, Figures, evaluate
from freezetrain.formats import fixed, language_and_code, perplexity, signed
from freezetrain.measuring.held_out import SHORTER, window_length
from freezetrain.progress import progress_bar
from freezetrain.ranks import is_first_rank
from freezetrain.recipe.sources import EvaluationTexts
from freezetrain.regions import Region, ablate
from freezetrain.tables import Column, Table

NOTHING = "nothing"  # what is changed where the model is evaluated as it is

LanguageFigures = dict[str, Figures]

Rises = dict[str, float]  # language → rise of its NLL, nats per byte

Change = Callable[[PreTrainedModel, Region], AbstractContextManager[None]]


def each_alone(
    model: PreTrainedModel,
    documents: dict[str, list[Document]],
    evaluation: EvaluationTexts,
    regions: Iterable[tuple[str, Region]],
    *,
    number: int,
    what: str,
    change: Change = ablate,
    during: Callable[[str], None] | None = None,
) -> dict[str, LanguageFigures]:
    """Name of a region → figures of every language while that region alone is changed.

    Args:
        regions: names and regions, gone through once, so that each may be made when its turn
            comes. An empty region stands for the model as it is.
        number: how many regions there are, for the progress bar, which is named ``what``.
        change: context manager in which the region is changed.
        during: called with each name while that region is changed.

    Raises:
        CheckError: a loss that is not finite, with the name of the region.
    """
    figures = {}
    with progress_bar(what, is_first_rank(), f"fewer regions, or {SHORTER}") as progress:
        for turn, (name, region) in enumerate(regions):

            def show(done: int, total: int, turn: int = turn) -> None:
                place = f" ({turn + 1} of {number})" if number > 1 else ""
                progress(turn * total + done, number * total, what + place)

            with change(model, region):
                try:
                    figures[name] = evaluate(
                        model,
                        documents,
                        max_length=window_length(evaluation, model),
                        overlap=evaluation.overlap,
                        batch_tokens=evaluation.batch_tokens,
                        progress=show,
                    )
                except CheckError as error:
                    raise CheckError(f"{name}: {error}") from error
                if during is not None:
                    during(name)
    return figures


def unchanged(
    model: PreTrainedModel, documents: dict[str, list[Document]], evaluation: EvaluationTexts
) -> LanguageFigures:
    """Figures of every language with the model as it is."""
    nothing = [(NOTHING, Region({}))]
    return each_alone(
        model, documents, evaluation, nothing, number=1, what="evaluate the model as it is"
    )[NOTHING]


def rises(before: Mapping[str, Figures], after: Mapping[str, Figures]) -> Rises:
    """Rise of each language's NLL in nats per byte."""
    return {
        language: figures.nll_per_byte - before[language].nll_per_byte
        for language, figures in after.items()
    }


@dataclass(frozen=True)
class LanguageEffect:
    """What changing a region does to one language, mean over several such regions."""

    rise: float
    """Of the NLL, nats per byte."""
    spread: float | None
    """Standard deviation of the rise over the regions; None for a single one."""
    perplexity: float | None
    """With the region changed; None past the range of a float."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What changing a region does, mean over several such regions (random seeds)."""

    mean_rise: float
    """Of the NLL over nothing changed, nats per byte; mean over languages."""
    spread: float | None
    """Standard deviation of the mean rise over the regions; None for a single one."""
    languages: dict[str, LanguageEffect]

    @property
    def rises(self) -> Rises:
        return {language: effect.rise for language, effect in self.languages.items()}


def mean_effect(figures: Mapping[str, LanguageFigures], names: Sequence[str]) -> Effect:
    """Effect of the regions ``names``; ``figures`` has those of NOTHING too."""
    before = figures[NOTHING]
    rises_by_name = [rises(before, figures[name]) for name in names]
    mean, spread = mean_and_spread([fmean(rise.values()) for rise in rises_by_name])
    languages = {}
    for language in before:
        rise, language_spread = mean_and_spread([rise[language] for rise in rises_by_name])
        perplexities = [figures[name][language].perplexity for name in names]
        mean_perplexity = fmean(perplexities) if all(map(math.isfinite, perplexities)) else None
        languages[language] = LanguageEffect(rise, language_spread, mean_perplexity)
    return Effect(mean_rise=mean, spread=spread, languages=languages)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation (n - 1); None for a single value."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def effects_table(title: str, before: LanguageFigures, effects: Mapping[str, Effect]) -> Table:
    """A row a language: with nothing changed, then with each of ``effects``; nats per byte."""
    columns = [
        Column("language", str, language_and_code, text=True),
        Column("tokens", lambda language: before[language].tokens),
        Column(
            "perplexity",
            lambda language: before[language].perplexity,
            perplexity,
            group=NOTHING,
        ),
        Column(
            "nats/byte",
            lambda language: before[language].nll_per_byte,
            fixed,
            group=NOTHING,
        ),
    ]
    for name, effect in effects.items():
        columns += _effect_columns(name, effect)
    return Table(title, columns, list(before), foot="mean", sortable=True)


def _effect_columns(group: str, effect: Effect) -> list[Column]:
    cells = {**effect.languages, _MEAN: LanguageEffect(effect.mean_rise, effect.spread, None)}

    def spread(language: str) -> str:
        value = cells[language].spread
        return "" if value is None else f"±{fixed(value)}"

    return [
        Column(
            "perplexity",
            lambda language: cells[language].perplexity or math.inf,
            perplexity,
            group=group,
        ),
        Column(
            "rise",
            lambda language: cells[language].rise,
            signed,
            note=spread,
            group=group,
            foot=_MEAN,
        ),
    ]


_MEAN = ""  # the language of which the foot of a table of effects is made: the mean of all


@dataclass(frozen=True)
class OwnAndOthers:
    """Rise of the NLL, nats per byte, with one language's region zeroed."""

    own: float
    """Of the language itself."""
    largest_other: float | None
    """Of the language that it hurts most among the others; None where there is only one."""
    other: str | None
    """That language."""
    mean_other: float | None


@dataclass(frozen=True)
class Dominance:
    """By how much each language's own region hurts it more, among languages that have regions."""

    rows: int
    """Regions that hurt their own language more than any other."""
    columns: int
    """Languages that are hurt more by their own region than by any other."""
    of: int
    """Languages that have regions."""
    own: float
    """Mean rise of a language with its own region zeroed."""
    other: float | None
    """Mean rise of a language with another one's region zeroed."""
    ratio: float | None
    """``own`` / ``other``; None where other is not above 0."""
    languages: dict[str, OwnAndOthers]


@dataclass(frozen=True)
class Selectivity:
    """What zeroing each language's region does to every language."""

    languages: list[str]
    """Those that have regions."""
    evaluated: list[str]
    entries: dict[str, int]
    """Of each region."""
    rise: dict[str, Rises]
    """By the language of the region."""
    control: dict[str, Rises] | None
    """The same of the controls; None without."""
    dominance: Dominance


def selectivity(
    model: PreTrainedModel,
    documents: dict[str, list[Document]],
    regions: Mapping[str, Region],
    controls: Mapping[str, Region] | None,
    evaluation: EvaluationTexts,
    before: LanguageFigures | None = None,
) -> Selectivity:
    """Zero the region of each language, and evaluate every language.

    Zhang et al. 2024 (arXiv 2402.14700): zeroing a language's monolingual region hurts that
    language most.

    Args:
        regions: by language.
        controls: by language too, such as ``region.random_like`` of each. None: none.
        before: what the model gives as it is, on the same documents. None: it is evaluated.

    Raises:
        UserError: no region, or a region of a language without documents.
    """
    if not regions:
        raise UserError("expected the region of at least one language, got none")
    for language in regions:
        if language not in documents:
            raise UserError(
                f"the region of language {language!r} needs documents of it to be tested on"
                f"{near_misses(language, documents)}; those given are of {' '.join(documents)}"
            )
    named = {("region", language): region for language, region in regions.items()}
    named |= {("control", language): region for language, region in (controls or {}).items()}
    if before is None:
        before = unchanged(model, documents, evaluation)
    figures = each_alone(
        model,
        documents,
        evaluation,
        ((f"{kind} of {language}", region) for (kind, language), region in named.items()),
        number=len(named),
        what="zero each region",
    )

    def matrix(kind: str) -> dict[str, Rises]:
        return {language: rises(before, figures[f"{kind} of {language}"]) for language in regions}

    rise = matrix("region")
    return Selectivity(
        languages=list(regions),
        evaluated=list(documents),
        entries={language: region.count for language, region in regions.items()},
        rise=rise,
        control=None if controls is None else matrix("control"),
        dominance=dominance(rise),
    )


def dominance(rise: Mapping[str, Rises]) -> Dominance:
    """``rise``: language of the region → language → nats per byte, for all that have regions."""
    languages: dict[str, OwnAndOthers] = {}
    rows = columns = 0
    for name in rise:
        own = rise[name][name]
        others = {other: rise[name][other] for other in rise if other != name}
        worst = max(others, key=others.__getitem__, default=None)
        rows += all(own > value for value in others.values())
        columns += all(own > rise[other][name] for other in others)
        languages[name] = OwnAndOthers(
            own,
            None if worst is None else others[worst],
            worst,
            fmean(others.values()) if others else None,
        )
    own_mean = fmean(effect.own for effect in languages.values())
    means = [e.mean_other for e in languages.values() if e.mean_other is not None]
    other_mean = fmean(means) if means else None
    return Dominance(
        rows=rows,
        columns=columns,
        of=len(rise),
        own=own_mean,
        other=other_mean,
        ratio=own_mean / other_mean if other_mean is not None and other_mean > 0 else None,
        languages=languages,
    )
