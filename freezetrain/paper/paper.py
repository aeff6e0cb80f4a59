"""`freezetrain paper`: the experiments of the paper on any model, and one page of them."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from transformers import PreTrainedModel

from freezetrain.analysis.alone import check_prompts
from freezetrain.data.texts import languages_in
from freezetrain.errors import UserError, near_misses
from freezetrain.evaluation.texts import text_facts
from freezetrain.measuring.held_out import held_out_documents
from freezetrain.models import load_model, load_tokenizer, local_folder, meta_model, on_gpu
from freezetrain.paper.claims import paper_claims
from freezetrain.paper.figures import draw_all
from freezetrain.paper.page import render_paper
from freezetrain.paper.parts import PaperScores, Study, parts
from freezetrain.paper.recipe import PAPER_CORE, PaperRecipe
from freezetrain.progress import Stages
from freezetrain.ranks import is_first_rank
from freezetrain.regions import block_parameters, decoder_blocks
from freezetrain.run_folder import Outcome

PAGE = "report.html"


def told_languages(recipe: PaperRecipe) -> tuple[list[str], list[str]]:
    """Languages scored, and of these the core's.

    UserError for one without texts, for no core, or where not all that are scored are evaluated.
    """
    there = languages_in(recipe.texts)
    scored = recipe.languages or there
    for name in [*scored, *recipe.core_languages, *recipe.evaluated]:
        if name not in there:
            raise UserError(
                f"there are no texts of language {name!r}{near_misses(name, there)}; there are "
                f"{' '.join(there)}"
            )
    missing = [name for name in scored if recipe.evaluated and name not in recipe.evaluated]
    if missing:
        raise UserError(
            "expected all languages that are scored among those evaluated, where their regions are "
            f"tested, got none of {' '.join(missing)}; add them to evaluated, or name fewer in "
            "languages"
        )
    core = recipe.core_languages or [name for name in PAPER_CORE if name in scored]
    if not core:
        raise UserError(
            f"none of the paper's core languages ({' '.join(PAPER_CORE)}) is among those scored; "
            f"name some of {' '.join(scored)} in core_languages"
        )
    return list(scored), list(core)


def _check_ratios(recipe: PaperRecipe, model: PreTrainedModel) -> None:
    """UserError for a share of which not even the largest parameter has a weight."""
    largest = max(parameter.numel() for parameter in block_parameters(model).values())
    for ratio in (*recipe.ratios, recipe.monolingual_ratio):
        if ratio * largest < 0.5:
            raise UserError(
                f"expected ratios of which a matrix has a weight, got {ratio:g}, and the largest "
                f"has {largest} weights; use {1 / largest:.2g} or more"
            )


def run(recipe: PaperRecipe, folder: Path) -> Outcome:
    """Leaves report.html, pictures/, tensorboard/, scores/ and regions/; goes on where it was.

    With several processes all score together, and share the documents of each evaluation.
    """
    # What can be refused is, before hours of scoring.
    tokenizer = load_tokenizer(recipe.model)
    scored, core = told_languages(recipe)
    evaluation = recipe.evaluation(recipe.evaluated or scored)
    documents = held_out_documents(evaluation, tokenizer)
    shape = meta_model(recipe.model)
    check_prompts(shape, tokenizer, recipe.prompts, recipe.new_tokens)
    _check_ratios(recipe, shape)
    stages = Stages(folder / "parts")

    with stages("scores"):
        scores = PaperScores(recipe, folder, scored, core)
    model = on_gpu(load_model(recipe.model))
    study = Study(recipe, model, tokenizer, documents, evaluation, scores, folder / "regions")
    found: dict[str, Any] = {}
    for (name, *within), make in parts(study).items():
        what = stages.kept("-".join([name, *within]), make)
        if within:
            found.setdefault(name, {})[within[0]] = what
        else:
            found[name] = what
    results: dict[str, Any] = {
        "model": {
            "name": recipe.model.path,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "layers": len(decoder_blocks(model)),
            "folder": str(local_folder(recipe.model)),
        },
        "settings": asdict(recipe),
        "languages": {"scored": scored, "core": core, "evaluated": list(documents)},
        "texts": [asdict(facts) for facts in text_facts(documents, tokenizer)],
        "scores": scores.made,
        **found,
        "seconds": stages.seconds,
    }
    results["claims"] = paper_claims(results)
    if not is_first_rank():
        return Outcome(results)
    render_paper(results, folder / PAGE)
    draw_all(results, folder)
    return Outcome(results, [_claims_table(results["claims"]), f"report: {folder / PAGE}"])


def _claims_table(claims: list[Mapping[str, Any]]) -> Table:
    table = Table("", "the paper's claim", "seen here", title="the paper on this model")
    for one in claims:
        mark = {True: "holds", False: "does not hold", None: "cannot be told"}[one["holds"]]
        table.add_row(mark, one["claim"], one["seen"])
        table.add_section()
    return table
