"""`freezetrain paper`: the experiments of the paper on any model, and one page of them."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from freezetrain.analysis.ablate import Ablation
from freezetrain.analysis.dimensions import Dimensions
from freezetrain.analysis.perturb import Perturbations
from freezetrain.data.texts import languages_in
from freezetrain.errors import UserError, near_misses
from freezetrain.evaluation.texts import text_facts
from freezetrain.generation.greedy import require_continuable
from freezetrain.how_long import LONG
from freezetrain.log_lines import duration
from freezetrain.measuring.held_out import held_out_documents, window_length
from freezetrain.models import load_model, load_tokenizer, local_folder, meta_model, on_gpu
from freezetrain.paper.claims import paper_claims
from freezetrain.paper.experiments import (
    PaperScores,
    Study,
    evaluations,
    overlaps,
    weight_changes,
    zero_core_regions,
    zero_dimensions,
    zero_monolingual_regions,
)
from freezetrain.paper.figures import draw_all
from freezetrain.paper.page import claims_table, render_paper
from freezetrain.paper.recipe import PAPER_CORE, PaperRecipe
from freezetrain.paper.results import (
    ModelFacts,
    MonolingualSelectivity,
    Overlaps,
    PaperLanguages,
    PaperResults,
)
from freezetrain.progress import Stages
from freezetrain.ranks import from_first_rank, is_first_rank
from freezetrain.regions import block_parameters, decoder_blocks
from freezetrain.run_folder import Outcome
from freezetrain.terminal import Terminal
from freezetrain.typed_json import from_json, to_json

PAGE = "report.html"


def run(recipe: PaperRecipe, folder: Path) -> Outcome:
    """Leaves report.html, pictures/, tensorboard/, scores/ and regions/; goes on where it was.

    With several processes all score together, and share the documents of each evaluation.
    """
    # What can be refused is, before hours of scoring.
    tokenizer = load_tokenizer(recipe.model)
    scored, core = paper_languages(recipe)
    evaluation = recipe.evaluation(recipe.evaluated or scored)
    documents = held_out_documents(evaluation, tokenizer)
    shape = meta_model(recipe.model)
    require_continuable(shape, tokenizer, recipe.prompts, recipe.new_tokens)
    _check_ratios(recipe, shape)
    window_length(evaluation, shape)
    stages = Stages(folder / "parts")

    with stages("scores"):
        scores = PaperScores(recipe, folder, scored, core)
    model = on_gpu(load_model(recipe.model))
    study = Study(recipe, model, tokenizer, documents, evaluation, scores, folder / "regions")
    _say_how_long(study, stages)

    def kept(name: str, kind: Any, make: Callable[[], Any]) -> Any:
        return _kept(stages, name, kind, make)

    results = PaperResults(
        model=ModelFacts(
            name=recipe.model.path,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            layers=len(decoder_blocks(model)),
            folder=str(local_folder(recipe.model)),
        ),
        settings=asdict(recipe),
        languages=PaperLanguages(scored, core, list(documents)),
        texts=text_facts(documents, tokenizer),
        scores=dict(scores.made),
        seconds=stages.seconds,  # which grows with each part
        ablation=kept("ablation", Ablation, lambda: zero_core_regions(study)),
        selectivity=kept(
            "selectivity", MonolingualSelectivity | None, lambda: zero_monolingual_regions(study)
        ),
        dimensions=kept("dimensions", Dimensions, lambda: zero_dimensions(study)),
        weights={
            change: kept(f"weights-{change}", Perturbations | None, make)
            for change, make in weight_changes(study).items()
        },
        overlap=kept("overlap", Overlaps, lambda: overlaps(study)),
    )
    results.claims = paper_claims(results)
    display: list[Any] = []
    if is_first_rank():
        render_paper(results, folder / PAGE)
        draw_all(results, folder)
        display = [claims_table(results.claims), f"report: {folder / PAGE}"]
    return Outcome(to_json(results), display)


def _say_how_long(study: Study, stages: Stages) -> None:
    """Say how long the evaluations that are left take, once one of them is measured."""
    left = sum(number for part, number in evaluations(study).items() if not stages.is_kept(part))
    if not from_first_rank(left):
        return
    start = time.monotonic()
    languages = len(study.before)
    seconds = left * (time.monotonic() - start)
    if is_first_rank() and seconds > LONG:
        Terminal(stderr=True).print(
            f"about {duration(seconds)} for about {left} evaluations of {languages} languages; "
            "shorter with fewer documents, languages, ratios, random_seeds or weights; the "
            "same command goes on where it was stopped"
        )


def _kept(stages: Stages, name: str, kind: Any, make: Callable[[], Any]) -> Any:
    """The ``kind`` that ``make`` gives, or gave in an earlier start, of which a file is left.

    UserError for a file of another version.
    """
    content = stages.kept(name, lambda: to_json(make()))
    try:
        return from_json(kind, content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"parts/{name}.json is not of this version ({error!r}); delete it to have that part "
            "made again"
        ) from error


def paper_languages(recipe: PaperRecipe) -> tuple[list[str], list[str]]:
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
    """UserError for a share of which not even the largest parameter has a weight, or too many."""
    there = sum(parameter.numel() for parameter in block_parameters(model).values())
    if recipe.weights > there:
        raise UserError(
            f"weights is {recipe.weights}, and the decoder blocks have {there}; lower it"
        )
    largest = max(parameter.numel() for parameter in block_parameters(model).values())
    for ratio in (*recipe.ratios, recipe.monolingual_ratio):
        if ratio * largest < 0.5:
            raise UserError(
                f"expected ratios of which a matrix has a weight, got {ratio:g}, and the largest "
                f"has {largest} weights; use {1 / largest:.2g} or more"
            )
