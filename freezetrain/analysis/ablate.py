"""`freezetrain ablate`: languages × regions, each region zeroed alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from freezetrain.analysis.alone import (
    LanguageFigures,
    check_prompts,
    continuation,
    each_alone,
    rises,
)
from freezetrain.analysis.recipe import AblateRecipe
from freezetrain.errors import UserError
from freezetrain.evaluation import Document, Figures
from freezetrain.evaluation.figures import finite_or_none
from freezetrain.measuring.held_out import held_out_documents
from freezetrain.models import load_model, load_tokenizer, on_gpu
from freezetrain.recipe.sources import EvaluationTexts
from freezetrain.regions import Region
from freezetrain.run_folder import Outcome
from freezetrain.scoring import Scores, select
from freezetrain.scoring.scores import language_scores


@dataclass(frozen=True)
class Removal:
    """One region that is zeroed."""

    kind: Literal["top", "bottom", "random", "file"]
    ratio: float | None = None  # of the entries of each tensor, where it is selected from scores
    seed: int | None = None
    like: str | None = None  # what a random region equals in size; named only if it is zeroed too


def ablations(
    model: PreTrainedModel,
    documents: dict[str, list[Document]],
    regions: Mapping[str, Region],
    evaluation: EvaluationTexts,
) -> dict[str, LanguageFigures]:
    """Figures of every language with nothing zeroed, then with each region zeroed alone."""
    every = {NOTHING: Region({}), **regions}
    return each_alone(
        model, documents, evaluation, every.items(), number=len(every), what="zero each region"
    )


def as_results(figures: Mapping[str, LanguageFigures]) -> dict[str, Any]:
    return {
        name: {language: value.to_dict() for language, value in by_language.items()}
        for name, by_language in figures.items()
    }


def removals(recipe: AblateRecipe) -> dict[str, Removal]:
    """Name -> what is zeroed, in order. UserError if two would have one name."""
    names = [Path(path).name.removesuffix(".safetensors") for path in recipe.regions]
    planned: list[tuple[str, Removal]] = []
    seeds = recipe.random_seeds if "random" in recipe.which else []
    for name in names:
        planned.append((name, Removal("file")))
        for seed in seeds:
            planned.append(
                (f"random like {name}, seed {seed}", Removal("random", None, seed, name))
            )
    for ratio in recipe.ratios if recipe.scores is not None else []:
        share = f"{100 * ratio:g}%"
        top = f"top {share}" if "top" in recipe.which else None
        if top:
            planned.append((top, Removal("top", ratio)))
        if "bottom" in recipe.which:
            planned.append((f"bottom {share}", Removal("bottom", ratio)))
        for seed in seeds:
            planned.append((f"random {share}, seed {seed}", Removal("random", ratio, seed, top)))
    seen = {NOTHING}
    for name, _ in planned:
        if name in seen:
            raise UserError(f"two regions are called {name!r}; rename one of the files")
        seen.add(name)
    return dict(planned)


def _maker(recipe: AblateRecipe, model: PreTrainedModel) -> Callable[[Removal, str], Region]:
    """Loads all files and opens the scores, so that what can be refused is; then makes regions."""
    files = {
        Path(path).name.removesuffix(".safetensors"): Region.load(path, model=model)
        for path in recipe.regions
    }
    total = None
    if recipe.scores is not None:
        total = Scores.sum(list(language_scores(recipe.scores, recipe.languages).values()))
        Region({}, total.base).check_base(model)

    @lru_cache(maxsize=1)  # the random regions of a ratio follow each other
    def top(ratio: float) -> Region:
        assert total is not None
        return select(total, ratio, norms=recipe.norms)

    def make(removal: Removal, name: str) -> Region:
        if removal.kind == "file":
            return files[name]
        if removal.kind == "random":
            assert removal.seed is not None
            like = top(removal.ratio) if removal.ratio is not None else files[str(removal.like)]
            return like.random_like(removal.seed)
        assert removal.ratio is not None
        if removal.kind == "top":
            return top(removal.ratio)
        assert total is not None
        return select(total, removal.ratio, which="bottom", norms=recipe.norms)

    return make


def _groups(planned: Mapping[str, Removal]) -> list[tuple[Removal, list[str]]]:
    """Random regions that differ in their seed alone are one group, everything else its own."""
    groups: dict[Any, tuple[Removal, list[str]]] = {}
    for name, one in planned.items():
        key = (one.kind, one.ratio, one.like) if one.kind == "random" else name
        groups.setdefault(key, (one, []))[1].append(name)
    return list(groups.values())


def _tables(results: Mapping[str, Any], planned: Mapping[str, Removal]) -> list[Any]:
    """A table for each ratio and each file, with its random regions beside it."""
    figures = {
        name: {language: Figures.from_dict(value) for language, value in by_language.items()}
        for name, by_language in results["figures"].items()
    }
    columns: dict[str, dict[str, list[str]]] = {}
    for one, names in _groups(planned):
        title = f"{100 * one.ratio:g}%" if one.ratio is not None else one.like or names[0]
        heading = names[0] if one.kind == "file" else one.kind
        columns.setdefault(f"{title} set to zero", {})[heading] = names
    return [as_table(figures, groups, title) for title, groups in columns.items()]


def remove(
    recipe: AblateRecipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: dict[str, list[Document]],
) -> dict[str, Any]:
    """Results of the verb, with the model and the documents at hand.

    ``regions``: name → kind, ratio, seed, what it is like, its entries and their share of all
    weights. ``figures``: ``nothing`` or name → language → figures. ``summary``: of each kind and
    ratio the mean over its regions (random seeds) of what :func:`effect` says. ``texts``: of each
    prompt, ``nothing`` or name → what the model puts after it.
    """
    planned = removals(recipe)
    check_prompts(model, tokenizer, recipe.prompts, recipe.new_tokens)
    make = _maker(recipe, model)
    facts: dict[str, dict[str, Any]] = {}
    texts: dict[str, dict[str, str]] = {prompt: {} for prompt in recipe.prompts}

    def regions() -> Iterator[tuple[str, Region]]:
        yield NOTHING, Region({})
        for name, removal in planned.items():
            region = make(removal, name)
            size = {"entries": region.count, "share": region.coverage(model).model}
            facts[name] = {**asdict(removal), **size}
            yield name, region

    def say(name: str) -> None:
        for prompt, by_name in texts.items():
            by_name[name] = continuation(model, tokenizer, prompt, recipe.new_tokens)

    figures = each_alone(
        model, documents, recipe.evaluation, regions(), number=1 + len(planned),
        what="zero each region", during=say,
    )  # fmt: skip
    return {
        "regions": facts,
        "figures": as_results(figures),
        "summary": [
            {"kind": one.kind, "ratio": one.ratio, "like": one.like, "regions": names}
            | effect(figures, names)
            for one, names in _groups(planned)
        ],
        "texts": [{"prompt": prompt, "texts": by_name} for prompt, by_name in texts.items()],
    }


def run(recipe: AblateRecipe, folder: Path) -> Outcome:
    planned = removals(recipe)
    model, tokenizer = on_gpu(load_model(recipe.model)), load_tokenizer(recipe.model)
    documents = held_out_documents(recipe.evaluation, tokenizer)
    results = remove(recipe, model, tokenizer, documents)
    return Outcome(results, _tables(results, planned))


NOTHING = "nothing"  # what is zeroed where the model is evaluated as it is


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation (n - 1) over seeds; None for a single or an infinite value."""
    known = len(values) > 1 and all(map(isfinite, values))  # perplexities may be infinite
    return fmean(values), stdev(values) if known else None


def effect(figures: Mapping[str, LanguageFigures], names: Sequence[str]) -> dict[str, Any]:
    """What zeroing each of ``names`` did on average, ready for JSON.

    ``mean_rise``: of the NLL over nothing zeroed, nats per byte, mean over languages, then over
    ``names``; ``spread`` its standard deviation over ``names``. The same of each language.
    """
    before = figures[NOTHING]
    by_name = [rises(before, figures[name]) for name in names]
    mean, spread = mean_and_spread([fmean(rise.values()) for rise in by_name])
    languages = {}
    for language in before:
        rise, of_language = mean_and_spread([rise[language] for rise in by_name])
        perplexity = fmean(figures[name][language].perplexity for name in names)
        languages[language] = {
            "rise": rise,
            "spread": of_language,
            "perplexity": finite_or_none(perplexity),
        }
    return {"mean_rise": mean, "spread": spread, "languages": languages}


def as_table(
    figures: Mapping[str, LanguageFigures],
    columns: Mapping[str, Sequence[str]] | None = None,
    title: str = "with a region set to zero",
) -> Table:
    """Languages × what is zeroed: perplexity and bits per byte, with the mean rise below.

    ``columns``: heading -> regions whose mean it shows, with the spread over them where there are
    several. None: each region by itself.
    """
    if columns is None:
        columns = {name: [name] for name in figures if name != NOTHING}
    groups: dict[str, Sequence[str]] = {NOTHING: [NOTHING], **columns}
    table = Table(title=f"{escape(title)}: perplexity, then bits per byte", title_justify="left")
    table.add_column("language")
    for unit in ("", ",\nbits/byte"):
        for heading in groups:
            table.add_column(escape(heading) + unit, justify="right")
    for language in figures[NOTHING]:
        cells = []
        for read, digits in (_PERPLEXITY, _BITS):
            for names in groups.values():
                values = [read(figures[name][language]) for name in names]
                cells.append(_cell(values, digits))
        table.add_row(escape(language), *cells)
    table.add_section()
    means = [
        _cell([fmean(rises(figures[NOTHING], figures[name]).values()) for name in names], "+.4f")
        for names in groups.values()
    ]
    table.add_row("mean rise,\nnats/byte", *[""] * len(groups), *means)
    return table


_Reading = tuple[Callable[[Figures], float], str]

_PERPLEXITY: _Reading = (lambda figures: figures.perplexity, ".4g")

_BITS: _Reading = (lambda figures: figures.bits_per_byte, ".3f")


def _cell(values: Sequence[float], digits: str) -> str:
    mean, spread = mean_and_spread(values)
    shown = f"{mean:{digits}}"
    return shown if spread is None else f"{shown}\n±{spread:.2g}"
