"""`freezetrain forgetting`: what one model lost against another, and what it gained."""

from pathlib import Path

from freezetrain.errors import UserError, near_misses
from freezetrain.evaluation import forgetting
from freezetrain.evaluation.table import forgetting_table
from freezetrain.jobs.evaluate import evaluate_with_bar, held_out_documents
from freezetrain.jobs.outcome import Outcome
from freezetrain.models import load_model, load_tokenizer, on_gpu
from freezetrain.recipe import ForgettingRecipe


def run(recipe: ForgettingRecipe, folder: Path) -> Outcome:
    sources = {"base": recipe.base, "adapted": recipe.adapted}
    tokenizers = {name: load_tokenizer(source) for name, source in sources.items()}
    figures = {}
    for name, source in sources.items():
        documents = held_out_documents(recipe.evaluation, tokenizers[name])
        if recipe.target is not None and recipe.target not in documents:
            raise UserError(
                f"the target {recipe.target!r} is not among the languages evaluated"
                f"{near_misses(recipe.target, documents)}; they are {' '.join(documents)}"
            )
        model = on_gpu(load_model(source))
        figures[name] = evaluate_with_bar(model, documents, recipe.evaluation, name)
        del model  # one at a time in memory
    lost = forgetting(figures["base"], figures["adapted"], recipe.target)
    results = {
        "forgetting": lost.to_dict(),
        "figures": {
            name: {language: value.to_dict() for language, value in by_language.items()}
            for name, by_language in figures.items()
        },
    }
    return Outcome(results, [forgetting_table(figures["base"], figures["adapted"], recipe.target)])
