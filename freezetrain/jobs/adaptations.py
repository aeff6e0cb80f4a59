"""The quickstart's training runs: one variant, once for each seed, each verified bit for bit."""

import json
import shutil
from pathlib import Path
from typing import Any

from freezetrain.jobs import train
from freezetrain.jobs.verify import compare
from freezetrain.models import local_folder
from freezetrain.recipe import (
    Engine,
    ModelSource,
    Optimization,
    QuickstartRecipe,
    TrainRecipe,
    Watch,
)
from freezetrain.regions import Region

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
