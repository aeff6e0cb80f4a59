"""`freezetrain select`: from scores, sets, magnitudes, vocabulary or at random to region files."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from rich.markup import escape
from rich.table import Table

from freezetrain.corpora import read_languages
from freezetrain.errors import UserError
from freezetrain.jobs.outcome import Outcome
from freezetrain.jobs.score_files import language_scores
from freezetrain.jobs.stored_model import stored_model
from freezetrain.models import load_model, load_tokenizer
from freezetrain.recipe import SelectRecipe
from freezetrain.regions import Region, Scores, monolingual, select, vocabulary_region
from freezetrain.regions.expression import Expression
from freezetrain.regions.magnitude import magnitude_scores
from freezetrain.sequences.packing import token_stream

CORE = "core"  # in an expression: the region of all languages together


def make_region(recipe: SelectRecipe) -> Region:
    """The one region that the recipe describes."""
    if recipe.kind == "random":
        return Region.load(str(recipe.like)).random_like(recipe.seed)
    if recipe.kind == "vocabulary":
        assert recipe.model is not None
        assert recipe.language is not None
        language = read_languages(recipe.texts, [recipe.language])[recipe.language]
        stream = token_stream(language.to_train(), load_tokenizer(recipe.model))
        counts = torch.bincount(torch.from_numpy(stream))
        return vocabulary_region(load_model(recipe.model), counts, recipe.min_count)
    if recipe.kind == "magnitude":
        assert recipe.model is not None
        return _selected(magnitude_scores(*stored_model(recipe.model)), recipe)
    if recipe.kind == "expression":
        return _combined(recipe)
    scores = language_scores(str(recipe.scores), recipe.languages)
    return _selected(Scores.sum(list(scores.values())), recipe)


def monolingual_regions(recipe: SelectRecipe) -> dict[str, Region]:
    """Of the recipe's language, or of every language."""
    others = recipe.languages
    if others and recipe.language and recipe.language not in others:
        others = [recipe.language, *others]
    scores = language_scores(str(recipe.scores), others)
    wanted = [recipe.language] if recipe.language else None
    return monolingual(scores, recipe.ratio, languages=wanted, norms=recipe.norms)


def _selected(scores: Scores, recipe: SelectRecipe) -> Region:
    return select(
        scores,
        recipe.ratio,
        which=recipe.which,
        per=recipe.per,
        unit=recipe.unit,
        norms=recipe.norms,
    )


def _combined(recipe: SelectRecipe) -> Region:
    """The sets that an expression names, of which only those are made, put together."""
    expression = Expression(str(recipe.expression))
    known: dict[str, Callable[[], Region]] = {}
    if recipe.regions is not None:
        known |= _files(Path(recipe.regions))
    if recipe.scores is not None:
        scores = language_scores(recipe.scores, recipe.languages)
        of_scores = _tops(scores, recipe)
        if twice := sorted(known.keys() & of_scores.keys()):
            raise UserError(
                f"{twice[0]!r} is a file in {recipe.regions} and also a name that {recipe.scores} "
                "gives; rename the file"
            )
        known |= of_scores
    expression.check(known)
    return expression.region(lambda name: known[name]())


def _files(folder: Path) -> dict[str, Callable[[], Region]]:
    suffix = ".safetensors"
    files = sorted(folder.glob(f"*{suffix}"))
    if not files:
        raise UserError(f"expected a folder of region files (*{suffix}) at {folder}, found none")
    return {path.name.removesuffix(suffix): _loaded(path) for path in files}


def _loaded(path: Path) -> Callable[[], Region]:
    return lambda: Region.load(path)


def _tops(scores: Mapping[str, Scores], recipe: SelectRecipe) -> dict[str, Callable[[], Region]]:
    """What the recipe selects by the scores of each language alone, and of all together."""

    def top(part: Scores) -> Callable[[], Region]:
        return lambda: _selected(part, recipe)

    if CORE in scores:
        raise UserError(f"a language is called {CORE!r}, which is all languages; rename its scores")
    tops = {language: top(part) for language, part in scores.items()}
    return tops | {CORE: lambda: _selected(Scores.sum(list(scores.values())), recipe)}


def facts(region: Region) -> Table:
    """How much of each layer the region covers."""
    coverage = region.coverage()
    table = Table("layer", "share of its entries", title=f"{region.count:,} entries")
    for layer, share in coverage.layers.items():
        table.add_row(str(layer), f"{share:.3%}")
    table.add_section()
    table.add_row("all parameters named", f"{coverage.model:.3%}")
    return table


def _saved(region: Region, path: Path) -> dict[str, object]:
    """Write a region file; for results, what it holds."""
    region.save(path)
    return {
        "file": path.name,
        "entries": region.count,
        "digest": region.digest,
        "coverage": region.coverage().model,
        "made": region.made,
    }


def run(recipe: SelectRecipe, folder: Path) -> Outcome:
    if recipe.kind == "monolingual" and recipe.language is None:
        regions = monolingual_regions(recipe)
        results = {
            name: _saved(region, folder / f"{name}.safetensors") for name, region in regions.items()
        }
        table = Table("language", "entries", "share", "file", title="monolingual regions")
        for name, saved in results.items():
            counts = f"{saved['entries']:,}", f"{saved['coverage']:.3%}"
            table.add_row(escape(name), *counts, escape(str(saved["file"])))
        return Outcome({"regions": results}, [table, f"regions: {folder}"])
    if recipe.kind == "monolingual":
        (region,) = monolingual_regions(recipe).values()
    else:
        region = make_region(recipe)
    path = folder / "region.safetensors"
    return Outcome(_saved(region, path), [facts(region), f"region: {path}"])
