"""`freezetrain train RECIPE --dry_run`: what would run and what it takes, without allocating it."""

import shutil
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import PreTrainedModel

from freezetrain.files import readable
from freezetrain.ranks import Launch
from freezetrain.run_folder import Outcome
from freezetrain.training.engines import kind_of, precision, world_size
from freezetrain.training.memory import MemoryEstimate, estimate
from freezetrain.training.recipe import TrainRecipe
from freezetrain.training.train import (
    checkpoint_bytes,
    kept_bytes,
    penalty_of,
    shape_and_region,
    trained_weights,
)

_WHEN = {
    "load": "while the model is loaded",
    "forward": "at the end of the forward pass",
    "loss": "when the backward pass begins",
    "backward": "in the backward pass",
    "step": "in the optimizer's step",
    "watch": "in an evaluation",
}


def run(recipe: TrainRecipe, launch: Launch, folder: Path) -> Outcome:
    """Say what ``recipe`` would run. Needs the model's configuration, and no tokenizer or texts.

    Raises UserError for what would be refused before the texts are read.
    """
    settings = recipe.optimization
    world = world_size(recipe.engine, launch)
    kind = kind_of(recipe.engine, world)
    accumulate = settings.accumulate(world)
    model, region = shape_and_region(recipe)
    penalty_of(recipe, model)  # refuses what it cannot be made of
    on_gpu = torch.cuda.is_available() or settings.precision.startswith("bf16")
    memory = estimate(model, recipe, world, region, on_gpu)
    weights = sum(parameter.numel() for parameter in model.parameters())
    results: dict[str, Any] = {
        "engine": kind,
        "devices": world,
        "nodes": launch.nodes,
        "precision": precision(settings),
        "weights": weights,
        "trained": trained_weights(model),
        "frozen": None if region is None else region.count,
        "micro_batch": settings.micro_batch,
        "accumulate": accumulate,
        "tokens_per_step": settings.step_tokens,
        "steps": _steps(recipe),
        "checkpoint_bytes": checkpoint_bytes(recipe, kind, weights, trained_weights(model)),
        "kept_bytes": kept_bytes(recipe, kind, weights),
        "memory_bytes": memory.peak,
        "host_bytes": memory.host,
        "region_bytes": memory.region,
    }
    if results["steps"] is not None:
        recipe.freeze.check_steps(results["steps"])
    tables = [_plan(recipe, model, results, folder), _memory(memory, on_gpu)]
    return Outcome(results, tables)


def _steps(recipe: TrainRecipe) -> int | None:
    """Optimizer steps; None where only the texts tell how many."""
    settings = recipe.optimization
    known = settings.max_steps is not None or settings.max_tokens is not None
    return settings.steps(0) if known else None


def _plan(
    recipe: TrainRecipe, model: PreTrainedModel, results: dict[str, Any], folder: Path
) -> Table:
    settings = recipe.optimization
    table = Table("what", "would run", title="dry run: nothing was started, nothing is written")
    table.add_row("model", f"{recipe.model.path}, {results['weights']:,} weights")
    if recipe.lora is not None:
        table.add_row("trained", f"{results['trained']:,} of them, the adapters'")
    if results["frozen"] is not None:
        share = results["frozen"] / results["weights"]
        table.add_row("frozen", f"{results['frozen']:,} entries of them, {share:.3%}")
    told = "" if settings.precision != "auto" else " (auto, on this machine)"
    table.add_row(
        "engine",
        f"{results['engine']} on {results['devices']} devices of {results['nodes']} nodes, "
        f"{results['precision']}{told}",
    )
    sequences = f"{settings.micro_batch} sequences x {results['accumulate']} accumulated"
    table.add_row(
        "optimizer step",
        f"{sequences} x {results['devices']} devices x {settings.sequence_length} tokens = "
        f"{results['tokens_per_step']:,} tokens",
    )
    steps = results["steps"]
    if steps is None:
        table.add_row("steps", "one pass over the texts: known once they are tokenized")
    else:
        tokens = steps * results["tokens_per_step"]
        table.add_row("steps", f"{steps:,}, {tokens:,} tokens")
    table.add_row(
        "checkpoint", f"{readable(results['checkpoint_bytes'])}, and two while it is saved"
    )
    if results["kept_bytes"]:
        table.add_row("kept by the brake", f"{readable(results['kept_bytes'])}, and two at times")
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    table.add_row("free disk", f"{readable(shutil.disk_usage(place).free)} at {place}")
    return table


def _memory(memory: MemoryEstimate, on_gpu: bool) -> Table:
    table = Table("what", title="memory of each rank, estimated")
    table.add_column("on the device" if on_gpu else "in CPU memory", justify="right")
    table.add_column("there at the peak", justify="right")
    if on_gpu:
        table.add_column("in CPU memory", justify="right")
    rows = [
        (part.name, part.device, part.device if memory.moment in part.during else 0, part.host)
        for part in memory.parts
    ]
    rows.append((f"together, {_WHEN[memory.moment]}", 0, memory.peak, memory.host))
    rows.append(("the region's share of it", 0, memory.region, 0))
    for name, *values in rows:
        cells = [readable(value) if value else "" for value in values]
        table.add_row(name, *cells[: len(table.columns) - 1], end_section=name == rows[-3][0])
    return table
