"""`freezetrain ablate`: languages × regions, each region zeroed alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from transformers import PreTrainedModel

from freezetrain.errors import UserError
from freezetrain.evaluation import Document, Figures
from freezetrain.jobs.evaluate import evaluate_with_bar, held_out_documents
from freezetrain.jobs.outcome import Outcome
from freezetrain.models import load_model, load_tokenizer, on_gpu
from freezetrain.recipe import AblateRecipe, EvaluationTexts
from freezetrain.regions import Region, ablate

Ablations = dict[str, dict[str, Figures]]  # what is zeroed → language → figures

NOTHING = "nothing"


def ablations(
    model: PreTrainedModel,
    documents: dict[str, list[Document]],
    regions: Mapping[str, Region],
    evaluation: EvaluationTexts,
) -> Ablations:
    """Figures of every language with nothing zeroed, then with each region zeroed alone."""
    found = {NOTHING: evaluate_with_bar(model, documents, evaluation, "nothing zeroed")}
    for name, region in regions.items():
        with ablate(model, region):
            found[name] = evaluate_with_bar(model, documents, evaluation, f"{name} zeroed")
    return {
        name: {language: sums.figures() for language, sums in by_language.items()}
        for name, by_language in found.items()
    }


def mean_rise(figures: Ablations, name: str) -> float:
    """Mean over languages of the rise in NLL per token when ``name`` is zeroed, in nats."""
    rises = [
        (figures[name][language].nll - before.nll) / before.tokens
        for language, before in figures[NOTHING].items()
    ]
    return sum(rises) / len(rises)


def as_results(figures: Ablations) -> dict[str, Any]:
    return {
        name: {language: value.to_dict() for language, value in by_language.items()}
        for name, by_language in figures.items()
    }


def as_table(figures: Ablations) -> Table:
    table = Table("language", *figures, title="perplexity with a region set to zero")
    for language in figures[NOTHING]:
        table.add_row(language, *(f"{by[language].perplexity:.1f}" for by in figures.values()))
    rises = (f"{mean_rise(figures, name):+.3f}" for name in figures)
    table.add_section()
    table.add_row("mean rise, nats/token", *rises)
    return table


def run(recipe: AblateRecipe, folder: Path) -> Outcome:
    names = [Path(path).stem for path in recipe.regions]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two regions are called {twice[0]!r}; rename one of the files")
    model = on_gpu(load_model(recipe.model))
    regions = {
        name: Region.load(path, model=model)
        for name, path in zip(names, recipe.regions, strict=True)
    }
    for seed in recipe.random_seeds if names else []:
        regions[f"random-{seed}"] = regions[names[0]].random_like(seed)
    documents = held_out_documents(recipe.evaluation, load_tokenizer(recipe.model))
    figures = ablations(model, documents, regions, recipe.evaluation)
    coverage = {name: region.coverage(model).model for name, region in regions.items()}
    return Outcome({"coverage": coverage, "figures": as_results(figures)}, [as_table(figures)])
