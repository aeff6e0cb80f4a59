"""`freezetrain train RECIPE --dry_run`: what would run and what it takes, without allocating it."""

import shutil
from pathlib import Path
from typing import Any

import torch

from freezetrain.data.tokens import tokenizer_digest
from freezetrain.files import readable
from freezetrain.loggers.opening import require_loggers
from freezetrain.models import check_fit, load_tokenizer, stored_dtype
from freezetrain.ranks import Launch
from freezetrain.regions import decoder_blocks
from freezetrain.run_folder import Outcome
from freezetrain.tables import Column, Table, facts_table
from freezetrain.training.checkpointed import recomputed
from freezetrain.training.data import read_data
from freezetrain.training.engines import precision
from freezetrain.training.memory import ALWAYS, MemoryEstimate, Part, estimate
from freezetrain.training.plan import Plan, make_plan
from freezetrain.training.preview import preview
from freezetrain.training.recipe import Pull, TrainRecipe

_WHEN = {
    "load": "while the model is loaded",
    "forward": "at the end of the forward pass",
    "loss": "when the backward pass begins",
    "backward": "in the backward pass",
    "step": "in the optimizer's step",
    "watch": "in an evaluation",
}


def run(recipe: TrainRecipe, launch: Launch, folder: Path, show: int = 0) -> Outcome:
    """Say what ``recipe`` would run. Needs the model's configuration, and no tokenizer or texts.

    ``show``: so many sequences of the run as text; for these the texts are read and tokenized as
    for the run itself, which then finds them in the cache.

    Raises UserError for what would be refused before the texts are read, or, with ``show``, when
    they are.
    """
    settings = recipe.optimization
    require_loggers(recipe.logger, recipe.wandb, recipe.mlflow)
    tokenizer = load_tokenizer(recipe.model) if show else None
    digest = None
    if tokenizer is not None and recipe.rehearse is not None:
        digest = tokenizer_digest(tokenizer)
    plan = make_plan(recipe, launch, digest)
    recipe = plan.recipe
    on_gpu = torch.cuda.is_available() or settings.precision.startswith("bf16")
    memory = estimate(
        plan.model,
        recipe,
        plan.world,
        plan.region,
        on_gpu,
        pulled=plan.pulled,
        stored=None if plan.pull is None else stored_dtype(recipe.model),
    )
    steps = None  # only the texts tell
    if settings.max_steps is not None or settings.max_tokens is not None:
        steps = settings.steps(0)
        recipe.freeze.check_steps(steps)
    shown: list[Any] = []
    if tokenizer is not None:
        check_fit(plan.model, tokenizer, settings.sequence_length)
        data = read_data(recipe, tokenizer, plan.world, plan.rehearsal)
        steps = data.steps
        recipe.freeze.check_steps(steps)
        shown = [data.table(), *preview(data, tokenizer, show)]
    results = {
        "engine": plan.engine,
        "devices": plan.world,
        "nodes": launch.nodes,
        "precision": precision(settings),
        "weights": plan.weights,
        "trained": plan.trained,
        "frozen": None if plan.region is None else plan.region.count,
        "micro_batch": settings.micro_batch,
        "accumulate": plan.accumulate,
        "tokens_per_step": settings.step_tokens,
        "steps": steps,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "kept_bytes": plan.kept_bytes,
        "memory_bytes": memory.peak,
        "host_bytes": memory.host,
        "region_bytes": memory.region,
    }
    tables = [_plan_table(plan, launch, steps, folder, bool(shown)), _memory_table(memory, on_gpu)]
    return Outcome(results, [*tables, *shown])


def _plan_table(
    plan: Plan, launch: Launch, steps: int | None, folder: Path, tokenized: bool
) -> Table:
    recipe, settings = plan.recipe, plan.recipe.optimization
    facts = {"model": f"{recipe.model.path}, {plan.weights:,} weights"}
    if recipe.lora is not None:
        facts["trained"] = f"{plan.trained:,} of them, the adapters'"
    if plan.region is not None:
        share = plan.region.count / plan.weights
        facts["frozen"] = f"{plan.region.count:,} entries of them, {share:.3%}"
    if recipe.pull is not None:
        facts["pulled to the base"] = _pulled(recipe.pull)
    machine = " (auto, on this machine)" if settings.precision == "auto" else ""
    if recipe.rehearse is not None and plan.rehearsal is not None:
        drawn = plan.rehearsal
        facts["rehearsed"] = (
            f"{recipe.rehearse.share:g} of the sequences, {len(drawn):,} that "
            f"{drawn.made.base.name or 'the base'} drew"
        )
    groups = recipe.engine.replicas
    split = f", weights split over {plan.world // groups} of them" if groups > 1 else ""
    facts["engine"] = (
        f"{plan.engine} on {plan.world} devices of {launch.nodes} nodes{split}, "
        f"{precision(settings)}{machine}{', compiled' if recipe.engine.compile else ''}"
    )
    if plan.recomputation is not None:
        facts["activations"] = f"gradient checkpointing {plan.recomputation.said()}"
    elif every := recipe.engine.gradient_checkpointing:
        again = recomputed(len(decoder_blocks(plan.model)), every)
        facts["activations"] = f"computed again of {sum(again)} of {len(again)} decoder blocks"
    facts["optimizer step"] = (
        f"{settings.micro_batch} sequences x {plan.accumulate} accumulated x {plan.world} devices "
        f"x {settings.sequence_length} tokens = {settings.step_tokens:,} tokens"
    )
    facts["steps"] = "one pass over the texts: known once they are tokenized"
    if steps is not None:
        facts["steps"] = f"{steps:,}, {steps * settings.step_tokens:,} tokens"
    facts["checkpoint"] = f"{readable(plan.checkpoint_bytes)}, and two while it is saved"
    if plan.kept_bytes:
        facts["kept by the brake"] = f"{readable(plan.kept_bytes)}, and two at times"
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    facts["free disk"] = f"{readable(shutil.disk_usage(place).free)} at {place}"
    title = "dry run: nothing was started, nothing is written"
    if tokenized:
        title += " but the cache of tokens"
    return facts_table(title, facts, heads=("what", "would run"))


def _pulled(pull: Pull) -> str:
    told = f"strength {pull.strength:g}"
    if pull.fisher is not None:
        told += f", weighed by the scores in {pull.fisher}"
    return ", ".join([told, *(f"{value:g} in {file}" for file, value in pull.regions.items())])


def _memory_table(memory: MemoryEstimate, on_gpu: bool) -> Table:
    together = Part(f"together, {_WHEN[memory.moment]}", memory.peak, ALWAYS, memory.host)
    of_region = Part("the region's share of it", memory.region, ALWAYS)

    def at_peak(part: Part) -> float | None:
        return part.device or None if memory.moment in part.during else None

    columns = [
        Column("what", "name", text=True),
        Column(
            "on the device" if on_gpu else "in CPU memory",
            lambda part: None if part is together else part.device or None,
            readable,
            missing="",
        ),
        Column("there at the peak", at_peak, readable, missing=""),
    ]
    if on_gpu:
        columns.append(Column("in CPU memory", lambda p: p.host or None, readable, missing=""))
    rows = [*memory.parts, together, of_region]
    return Table("memory of each rank, estimated", columns, rows)
