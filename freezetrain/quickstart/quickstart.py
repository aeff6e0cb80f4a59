"""`freezetrain quickstart`: the paper in minutes, every part real."""

import json
import logging
import shutil
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from freezetrain.analysis.ablate import ablations, as_results, as_table
from freezetrain.analysis.dimensions import region_place
from freezetrain.analysis.recipe import ScoreRecipe, SelectRecipe
from freezetrain.analysis.score import score_languages
from freezetrain.analysis.select import make_region
from freezetrain.analysis.verify import compare
from freezetrain.data.texts import languages_in
from freezetrain.errors import UserError, near_misses
from freezetrain.measuring.held_out import held_out_documents
from freezetrain.models import load_model, load_tokenizer, local_folder, on_gpu
from freezetrain.progress import Stages
from freezetrain.quickstart.observations import observe
from freezetrain.quickstart.page import render_report
from freezetrain.quickstart.recipe import QuickstartRecipe
from freezetrain.recipe.optimization import Engine, Optimization
from freezetrain.recipe.sources import EvaluationTexts, ModelSource
from freezetrain.regions import Region, decoder_blocks
from freezetrain.run_folder import Outcome
from freezetrain.scoring import Scores, select
from freezetrain.scoring.scores import language_scores
from freezetrain.training import train
from freezetrain.training.recipe import TrainRecipe, Watch

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


EVALUATIONS = 4  # of each training run, the one before the first step not counted

# Half the peak for the small base forgets half as much at the same gain; the other is the paper's.
LEARNING_RATES = {"built-in": 5e-4, "other": 5e-5}


def optimization(recipe: QuickstartRecipe, seed: int) -> Optimization:
    """How every variant is trained."""
    default = LEARNING_RATES["built-in" if recipe.model is None else "other"]
    return Optimization(
        max_steps=recipe.steps,
        sequence_length=recipe.sequence_length,
        learning_rate=recipe.learning_rate or default,
        warmup_steps=max(1, recipe.steps // 10),
        seed=seed,
    )


def _adapt(told: TrainRecipe, folder: Path, base: Path, checked: Region) -> dict[str, Any]:
    """Train, and compare the ``checked`` entries of the exported model with the base's."""
    outcome = train.run(told, folder, table=False)
    compared = compare(base, folder / "model", checked)
    return {
        **json.loads((folder / "forgetting.json").read_text(encoding="utf-8")),
        "seed": told.optimization.seed,
        "final_loss": outcome.results["final_loss"],
        "verify": {
            "checked": compared.checked,
            "moved": compared.moved,
            "changed_elsewhere": compared.changed,
        },
        "model": f"{folder.name}/model",
    }


def adaptations(
    recipe: QuickstartRecipe,
    source: ModelSource,
    languages: list[str],
    name: str,
    region: Region | None,
    core: Region,
    folder: Path,
) -> dict[str, Any]:
    """Further pre-train with ``region`` frozen, or nothing, once for each seed.

    Returns what the first run gave, with the other seeds' under ``repeats``. Only the first run's
    model is kept. Of plain training the ``core`` is compared, to show that it moves.
    """
    slug = name.removesuffix(" frozen").replace(" ", "-")
    file = None
    if region is not None:
        file = folder / f"{slug}.safetensors"
        region.save(file)
    runs: list[dict[str, Any]] = []
    for seed in range(recipe.seed, recipe.seed + recipe.seeds):
        told = TrainRecipe(
            model=source,
            texts=recipe.texts,
            languages=[recipe.target],
            region=str(file) if file else None,
            optimization=optimization(recipe, seed),
            engine=Engine(devices=1),  # the quickstart is one process
            watch=Watch(
                texts=recipe.texts,
                languages=languages,
                every_n_steps=max(1, recipe.steps // EVALUATIONS),
            ),
            checkpoint_every=recipe.steps + 1,  # none: a run of a minute is not resumed
            export_dtype="float32",  # as trained: rounding would hide what has moved a little
        )
        run_folder = folder / (slug if not runs else f"{slug}-seed{seed}")
        runs.append(_adapt(told, run_folder, local_folder(source), region or core))
        if len(runs) > 1:
            shutil.rmtree(run_folder / "model")
            del runs[-1]["model"]
    return {**runs[0], "repeats": runs[1:]}
