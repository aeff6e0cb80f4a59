"""`freezetrain quickstart`: the paper in minutes, every part real."""

import logging
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from freezetrain.corpora import languages_in
from freezetrain.errors import UserError, near_misses
from freezetrain.jobs.ablate import ablations, as_results, as_table
from freezetrain.jobs.adaptations import adaptations, optimization
from freezetrain.jobs.evaluate import held_out_documents
from freezetrain.jobs.observations import observe
from freezetrain.jobs.outcome import Outcome
from freezetrain.jobs.region_place import region_place
from freezetrain.jobs.score import score_languages
from freezetrain.jobs.score_files import language_scores
from freezetrain.jobs.select import make_region
from freezetrain.jobs.stages import Stages
from freezetrain.models import load_model, load_tokenizer, local_folder, on_gpu
from freezetrain.recipe import (
    Engine,
    EvaluationTexts,
    ModelSource,
    QuickstartRecipe,
    ScoreRecipe,
    SelectRecipe,
)
from freezetrain.regions import Region, Scores, decoder_blocks, select
from freezetrain.report import render_report

BUILT_IN_BASE = str(files("freezetrain") / "base")


def regions_of(recipe: QuickstartRecipe, source: ModelSource, folder: Path) -> dict[str, Region]:
    """Score the languages, select the core, and its controls: random and lowest scores."""
    settings = ScoreRecipe(
        model=source,
        texts=recipe.texts,
        languages=recipe.score_languages,
        sequence_length=recipe.sequence_length,
        seed=recipe.seed,
        engine=Engine(devices=1),  # the quickstart is one process
    )
    score_languages(settings, folder / "scores")
    total = Scores.sum(list(language_scores(folder / "scores", recipe.score_languages).values()))
    core = select(total, recipe.ratio)
    regions = {
        "core": core,
        "random": core.random_like(recipe.seed),
        "bottom": select(total, recipe.ratio, which="bottom"),
    }
    return regions


def unused_vocabulary(recipe: QuickstartRecipe, source: ModelSource) -> Region:
    """Rows of the tokens that the target language's training text never holds."""
    return make_region(
        SelectRecipe(
            kind="vocabulary",
            model=source,
            texts=recipe.texts,
            language=recipe.target,
            min_count=1,
        )
    )


def run(recipe: QuickstartRecipe, folder: Path) -> Outcome:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    stages = Stages()
    source = ModelSource(recipe.model or BUILT_IN_BASE)
    languages = languages_in(recipe.texts)
    if recipe.target not in languages:
        raise UserError(
            f"the target {recipe.target!r} is not among the texts' languages"
            f"{near_misses(recipe.target, languages)}; they are {' '.join(languages)}"
        )
    for language in recipe.score_languages:
        if language not in languages:
            raise UserError(
                f"score_languages has {language!r}, of which there are no texts"
                f"{near_misses(language, languages)}; there are {' '.join(languages)}"
            )
    evaluation = EvaluationTexts(recipe.texts, languages)

    with stages(f"1 of 5: score {len(recipe.score_languages)} languages, select the core region"):
        regions = regions_of(recipe, source, folder)
    model, tokenizer = on_gpu(load_model(source)), load_tokenizer(source)
    with stages(f"2 of 5: zero each region, evaluate {len(languages)} languages"):
        documents = held_out_documents(evaluation, tokenizer)
        figures = ablations(model, documents, regions, evaluation)

    core = regions["core"]
    frozen = {
        "plain": None,
        "core frozen": core,
        "core and vocabulary frozen": core | unused_vocabulary(recipe, source),
    }
    runs: dict[str, dict[str, Any]] = {}
    for number, (name, region) in enumerate(frozen.items(), start=3):
        with stages(f"{number} of 5: further pre-training on {recipe.target}, {name}"):
            runs[name] = adaptations(recipe, source, languages, name, region, core, folder)

    stages.seconds["total"] = round(sum(stages.seconds.values()), 1)
    results: dict[str, Any] = {
        "model": {
            "name": "built-in base" if recipe.model is None else recipe.model,
            "parameters": sum(p.numel() for p in model.parameters()),
            "layers": len(decoder_blocks(model)),
            "built_in": recipe.model is None,
            "folder": str(local_folder(source)),
        },
        "target": recipe.target,
        "languages": languages,
        "score_languages": recipe.score_languages,
        "settings": asdict(optimization(recipe, recipe.seed))
        | {"ratio": recipe.ratio, "seeds": recipe.seeds},
        "region": region_place(core, regions["random"], model) | {"file": "core.safetensors"},
        "ablation": as_results(figures),
        "runs": runs,
        "seconds": stages.seconds,
    }
    results["observations"] = observe(results)
    render_report(results, folder / "report.html")
    frozen_runs = [run for name, run in runs.items() if name != "plain"]
    moved = sum(one["verify"]["moved"] for run in frozen_runs for one in [run, *run["repeats"]])
    display = [
        as_table(figures),
        *(
            f"{'✓' if seen['holds'] else '✗'} {seen['claim']}: {seen['seen']}"
            for seen in results["observations"]
        ),
        f"report: {folder / 'report.html'}",
    ]
    return Outcome(results, display, passed=moved == 0)
