"""`freezetrain select`: region files from scores, sets, weights, texts, blocks or at random."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from freezetrain.analysis.recipe import SelectRecipe
from freezetrain.data.tokens import tokenize
from freezetrain.errors import UserError
from freezetrain.freezing.weights_folder import WeightsFolder
from freezetrain.models import load_model, load_tokenizer, local_folder, meta_model
from freezetrain.recipe.sources import ModelSource, TextSource
from freezetrain.regions import Expression, Region, layers_region, vocabulary_region
from freezetrain.regions.base import base_of
from freezetrain.regions.parameters import plain_name
from freezetrain.run_folder import Outcome
from freezetrain.scoring import Scores, magnitude_scores, monolingual, select
from freezetrain.scoring.scores import language_scores
from freezetrain.scoring.without_text import random_scores
from freezetrain.tables import Column, Table

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_READ = 2**22  # tokens counted at once

CORE = "core"  # in an expression: the region of all languages together


def make_region(recipe: SelectRecipe) -> Region:
    """The one region that the recipe describes."""
    if recipe.kind == "random":
        if recipe.like is not None:
            return Region.load(recipe.like).random_like(recipe.seed)
        assert recipe.model is not None
        model, full = stored_model(recipe.model)
        return _selected(random_scores(model, recipe.seed, recipe.unit, full), recipe)
    if recipe.kind == "vocabulary":
        assert recipe.model is not None
        assert recipe.language is not None
        counts = _token_counts(recipe.texts, recipe.language, load_tokenizer(recipe.model))
        return vocabulary_region(load_model(recipe.model), counts, recipe.min_count)
    if recipe.kind == "magnitude":
        assert recipe.model is not None
        return _selected(magnitude_scores(*stored_model(recipe.model)), recipe)
    if recipe.kind == "layers":
        assert recipe.model is not None
        model, full = stored_model(recipe.model)
        base = base_of(model, full)
        return layers_region(model, recipe.first, recipe.last, norms=recipe.norms, base=base)
    if recipe.kind == "expression":
        return _combined(recipe)
    scores = language_scores(str(recipe.scores), recipe.languages)
    return _selected(Scores.sum(list(scores.values())), recipe)


def _token_counts(
    texts: TextSource, language: str, tokenizer: "PreTrainedTokenizerBase"
) -> torch.Tensor:
    """How often each token stands in the language's training documents, int64 [V]."""
    store = tokenize(texts, language, tokenizer)
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    for first in range(0, len(store), _READ):
        part = store.read(first, min(first + _READ, len(store)))
        counts += np.bincount(part, minlength=len(counts))
    return torch.from_numpy(counts)


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
        known |= _region_files(Path(recipe.regions))
    if recipe.scores is not None:
        scores = language_scores(recipe.scores, recipe.languages)
        selected = _top_regions(scores, recipe)
        if twice := sorted(known.keys() & selected.keys()):
            raise UserError(
                f"{twice[0]!r} is a file in {recipe.regions} and also a name that {recipe.scores} "
                "gives; rename the file"
            )
        known |= selected
    expression.check(known)
    return expression.region(lambda name: known[name]())


def _region_files(folder: Path) -> dict[str, Callable[[], Region]]:
    suffix = ".safetensors"
    files = sorted(folder.glob(f"*{suffix}"))
    if not files:
        raise UserError(f"expected a folder of region files (*{suffix}) at {folder}, found none")
    return {path.name.removesuffix(suffix): partial(Region.load, path) for path in files}


def _top_regions(
    scores: Mapping[str, Scores], recipe: SelectRecipe
) -> dict[str, Callable[[], Region]]:
    """What the recipe selects by the scores of each language alone, and of all together."""
    if CORE in scores:
        raise UserError(f"a language is called {CORE!r}, which is all languages; rename its scores")
    tops: dict[str, Callable[[], Region]] = {
        language: partial(_selected, of_language, recipe)
        for language, of_language in scores.items()
    }
    return tops | {CORE: lambda: _selected(Scores.sum(list(scores.values())), recipe)}


def layers_table(region: Region) -> Table:
    """How much of each layer the region covers."""
    coverage = region.coverage()
    columns = [
        Column("layer", 0, str, text=True),
        Column(
            "share of its entries", 1, lambda share: f"{share:.3%}", foot=(None, coverage.model)
        ),
    ]
    title = f"{region.count:,} entries"
    return Table(title, columns, list(coverage.layers.items()), foot="all parameters named")


def _save(region: Region, path: Path) -> dict[str, object]:
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
        saved = {
            name: _save(region, folder / f"{name}.safetensors") for name, region in regions.items()
        }
        columns = [
            Column("language", str, text=True),
            Column("entries", lambda name: saved[name]["entries"]),
            Column("share", lambda name: saved[name]["coverage"], lambda share: f"{share:.3%}"),
            Column("file", lambda name: saved[name]["file"], text=True),
        ]
        table = Table("monolingual regions", columns, list(saved))
        return Outcome({"regions": saved}, [table, f"regions: {folder}"])
    if recipe.kind == "monolingual":
        (region,) = monolingual_regions(recipe).values()
    else:
        region = make_region(recipe)
    path = folder / "region.safetensors"
    return Outcome(_save(region, path), [layers_table(region), f"region: {path}"])


Read = Callable[[nn.Parameter], Tensor]


def stored_model(source: ModelSource) -> tuple["PreTrainedModel", Read | None]:
    """The model without weights, and a function that reads those of one of its parameters.

    transformers stores some models under other names or shapes than they have in memory (fused
    experts): these are loaded whole, and the function is None. UserError as :func:`load_model`.
    """
    model = meta_model(source)
    try:
        folder = WeightsFolder(local_folder(source))
        stored = _stored_names(model, folder)
    except UserError:  # load_model says what is wrong, if anything is
        return load_model(source), None
    return model, lambda parameter: folder[stored[id(parameter)]].to(parameter.dtype)


def _stored_names(model: nn.Module, folder: WeightsFolder) -> dict[int, str]:
    """Id of each parameter -> its name in the files; UserError where they hold it otherwise."""
    names = {}
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        stored = names[id(parameter)] = folder.stored_name(plain_name(name), shape)
        if folder.shape(stored) != shape:
            raise UserError(f"{folder.path} holds {stored!r} in another shape than {list(shape)}")
    return names
