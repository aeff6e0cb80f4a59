"""`freezetrain select`: from scores, at random or by vocabulary to a region file."""

from pathlib import Path

import torch
from rich.table import Table

from freezetrain.corpora import read_languages
from freezetrain.errors import UserError, near_misses
from freezetrain.jobs.outcome import Outcome
from freezetrain.models import load_model, load_tokenizer
from freezetrain.recipe import SelectRecipe
from freezetrain.regions import Region, Scores, monolingual, select, vocabulary_region
from freezetrain.sequences.packing import token_stream


def _scores(recipe: SelectRecipe) -> dict[str, Scores]:
    folder = Path(recipe.scores or "")
    files = {path.name.removesuffix(".safetensors"): path for path in folder.glob("*.safetensors")}
    if not files:
        raise UserError(
            f"expected a folder of score files at {folder}, found none; make them with "
            "`freezetrain score`"
        )
    wanted = recipe.languages or sorted(files)
    for language in [*wanted, *([recipe.language] if recipe.language else [])]:
        if language not in files:
            raise UserError(
                f"{folder} has no scores of language {language!r}{near_misses(language, files)}; "
                f"it has {' '.join(sorted(files))}"
            )
    return {language: Scores.load(files[language]) for language in wanted}


def make_region(recipe: SelectRecipe) -> Region:
    """The region that the recipe describes."""
    if recipe.kind == "random":
        return Region.load(str(recipe.like)).random_like(recipe.seed)
    if recipe.kind == "vocabulary":
        assert recipe.model is not None
        assert recipe.language is not None
        language = read_languages(recipe.texts, [recipe.language])[recipe.language]
        stream = token_stream(language.to_train(), load_tokenizer(recipe.model))
        counts = torch.bincount(torch.from_numpy(stream))
        return vocabulary_region(load_model(recipe.model), counts, recipe.min_count)
    scores = _scores(recipe)
    if recipe.kind == "monolingual":
        assert recipe.language is not None
        return monolingual(scores, recipe.language, recipe.ratio, norms=recipe.norms)
    return select(
        Scores.sum(list(scores.values())),
        recipe.ratio,
        which=recipe.which,
        per=recipe.per,
        unit=recipe.unit,
        norms=recipe.norms,
    )


def facts(region: Region) -> Table:
    """How much of each layer the region covers."""
    coverage = region.coverage()
    table = Table("layer", "share of its entries", title=f"{region.count:,} entries")
    for layer, share in coverage.layers.items():
        table.add_row(str(layer), f"{share:.3%}")
    table.add_section()
    table.add_row("all parameters named", f"{coverage.model:.3%}")
    return table


def run(recipe: SelectRecipe, folder: Path) -> Outcome:
    region = make_region(recipe)
    path = folder / "region.safetensors"
    region.save(path)
    results = {
        "file": path.name,
        "entries": region.count,
        "digest": region.digest,
        "coverage": region.coverage().model,
        "made": region.made,
    }
    return Outcome(results, [facts(region), f"region: {path}"])
