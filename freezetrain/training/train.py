"""`freezetrain train`: further pre-training with a region frozen and other languages watched."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from torch import nn
from transformers import PreTrainedTokenizerBase

from freezetrain.callbacks import (
    BaseAverage,
    BasePenalty,
    ForgettingBoard,
    ForgettingBrake,
    ForgettingTracker,
    RegionFreeze,
    Throughput,
    WeightAverage,
)
from freezetrain.data.texts import progress_bars
from freezetrain.evaluation import Forgetting, forgetting, forgetting_table
from freezetrain.evaluation.texts import TextFacts, text_facts, texts_table
from freezetrain.files import require_space
from freezetrain.measuring.held_out import held_out_documents, window_length
from freezetrain.models import check_fit, load_tokenizer, local_folder, stored_dtype
from freezetrain.ranks import current_launch
from freezetrain.regions import Region, decoder_blocks
from freezetrain.report.page import flat
from freezetrain.report.run import FORGETTING, RegionFacts, Run
from freezetrain.report.runs import PAGE
from freezetrain.report.runs_page import render_runs
from freezetrain.run_folder import Outcome
from freezetrain.training.checkpoints import latest_checkpoint
from freezetrain.training.data import TextData, read_data
from freezetrain.training.engines import trained_in_16_bits
from freezetrain.training.module import CausalLM
from freezetrain.training.plan import Plan, make_plan
from freezetrain.training.recipe import Freezing, TrainRecipe
from freezetrain.training.sharded import loader
from freezetrain.training.trainer import Export, fit


def run(recipe: TrainRecipe, folder: Path, table: bool = True, progress: bool = True) -> Outcome:
    """Train, or resume the run in ``folder``.

    ``table``: show the texts before training starts, and each evaluation as it is made, and leave a
    report. ``progress``: show bars.
    """
    launch = current_launch()
    table = table and launch.rank == 0
    tokenizer = load_tokenizer(recipe.model)
    plan = make_plan(recipe, launch)
    check_fit(plan.model, tokenizer, recipe.optimization.sequence_length)
    require_space(folder, plan.disk_bytes, "checkpoints and the model")
    with progress_bars(shown=progress):
        data = read_data(recipe, tokenizer, plan.world)
    recipe.freeze.check_steps(data.steps)
    if table:
        Console().print(data.table())
    parts = make_parts(plan, tokenizer, data, folder, table)
    texts: list[TextFacts] = []
    if parts.tracker is not None:
        texts = text_facts(parts.tracker.documents, tokenizer)
        if table:
            Console().print(texts_table(texts, "held-out texts"))
    resumed = latest_checkpoint(folder)
    L.seed_everything(recipe.optimization.seed, verbose=False)
    trainer = fit(
        loader(recipe, plan.engine),
        data,
        folder,
        parts.in_order(),
        recipe.checkpoint_every,
        progress,
        recipe.engine,
    )
    if parts.brake is not None:
        parts.brake.ensure(trainer)
    parts.export.ensure(trainer)
    results = {
        "resumed_from": None if resumed is None else resumed.name,
        "data": data.facts(),
        **({"texts": [asdict(facts) for facts in texts]} if texts else {}),
        **_results(plan, parts, trainer),
    }
    display = _display(plan, parts, folder)
    # A run whose time was used up before its first step has nothing to show.
    if table and parts.tracker is not None and len(parts.tracker.history.evaluations) > 1:
        render_runs([_run(plan, parts, folder, texts)], folder / PAGE)
        display.append(f"report: {folder / PAGE}")
    return Outcome(results, display)


@dataclass(frozen=True)
class Parts:
    """The callbacks of a run, in the order in which they have their turn."""

    tracker: ForgettingTracker | None
    """The first: it evaluates the base before a region is set to a value."""
    brake: ForgettingBrake | None
    """Before what looks at the weights in the end."""
    freeze: RegionFreeze | None
    penalty: BasePenalty | None
    average: WeightAverage | BaseAverage | None
    """What is exported instead of the last weights."""
    export: Export
    throughput: Throughput
    board: ForgettingBoard | None

    def in_order(self) -> list[L.Callback]:
        """Those that the run has."""
        parts = (getattr(self, field.name) for field in fields(self))
        return [part for part in parts if part is not None]


def make_parts(
    plan: Plan, tokenizer: PreTrainedTokenizerBase, data: TextData, folder: Path, table: bool
) -> Parts:
    """The callbacks that ``plan`` asks for. UserError where a language has no held-out text."""
    recipe = plan.recipe
    tracker = brake = freeze = board = None
    if not recipe.watch.off:
        tracker = _tracker(plan, tokenizer, list(data.packed), folder, table)
    if recipe.brake is not None and tracker is not None:
        # The folder is this run's own; what is in it was kept by a start that was killed.
        kept = folder / "kept" if recipe.brake.goes_back else None
        brake = ForgettingBrake(tracker, folder=kept, overwrite=True, **asdict(recipe.brake))
    if plan.region is not None:
        freeze = region_freeze(recipe, plan.region, plan.engine)
    average: WeightAverage | BaseAverage | None = None
    if recipe.average_with_base is not None:
        average = BaseAverage(recipe.average_with_base)
    elif recipe.optimization.ema_decay is not None:
        average = WeightAverage(recipe.optimization.ema_decay)
    if tracker is not None:
        board = ForgettingBoard(tracker, brake, hyperparameters(recipe))
    return Parts(
        tracker,
        brake,
        freeze,
        plan.penalty,
        average,
        Export(tokenizer, folder / "model", _export_dtype(recipe), average, tracker),
        Throughput(torch.bfloat16 if trained_in_16_bits(recipe.optimization) else None),
        board,
    )


def _tracker(
    plan: Plan, tokenizer: PreTrainedTokenizerBase, trained: list[str], folder: Path, table: bool
) -> ForgettingTracker:
    """A single language that is ``trained`` is the target; of several, none is watched."""
    watch = plan.recipe.watch
    documents = held_out_documents(watch, tokenizer)
    if len(trained) > 1:
        documents = {name: texts for name, texts in documents.items() if name not in trained}
    return ForgettingTracker(
        documents,
        target=trained[0] if len(trained) == 1 else None,
        every_n_steps=watch.every_n_steps,
        every_n_tokens=watch.every_n_tokens,
        at_samples=watch.at_samples,
        time_share=watch.time_share,
        max_length=window_length(watch, plan.model),
        overlap=watch.overlap,
        batch_tokens=watch.batch_tokens,
        results_path=folder / FORGETTING,
        overwrite=True,  # the folder is this run's own; the file is one of a start that was killed
        table=table,
    )


def region_freeze(recipe: TrainRecipe, region: Region, engine: str) -> RegionFreeze:
    """The callback; DeepSpeed's fp32 masters start from the stored values, not rounded ones.

    In 16 bits it makes them from weights in bfloat16, which a base stored in that loses nothing in.
    A freeze that begins later takes what training has made of them.
    """
    rounds = engine.startswith("zero") and trained_in_16_bits(recipe.optimization)
    rounds = rounds and stored_dtype(recipe.model) != torch.bfloat16
    exact = rounds and recipe.freeze.clamp is None and not recipe.freeze.first_step
    base = local_folder(recipe.model) if exact else None
    return RegionFreeze(region, base=base, **asdict(recipe.freeze))


def hyperparameters(recipe: TrainRecipe) -> dict[str, Any]:
    """What tells runs apart beside each other in TensorBoard, by the recipe's names."""
    settings = asdict(recipe)
    names = [
        *("languages", "replay", "region", "freeze", "penalty", "average_with_base", "lora"),
        *("optimization", "brake", "from_scratch"),
    ]
    return {
        "model": recipe.model.path,
        "engine": {"kind": recipe.engine.kind},
        **{name: settings[name] for name in names},
    }


def _export_dtype(recipe: TrainRecipe) -> torch.dtype | None:
    """None: as the weights are held."""
    if recipe.export_dtype != "stored":
        return getattr(torch, recipe.export_dtype)
    stored = stored_dtype(recipe.model)
    if stored is None and recipe.model.dtype != "stored":  # nobody says, so as it is trained
        return getattr(torch, recipe.model.dtype)
    return stored


def _results(plan: Plan, parts: Parts, trainer: L.Trainer) -> dict[str, Any]:
    """Of results.json, what the end of training tells."""
    recipe, tracker, module = plan.recipe, parts.tracker, trainer.lightning_module
    assert isinstance(module, CausalLM)
    loss = trainer.callback_metrics.get("train/loss")  # None if all steps were done before
    results = {
        "steps": trainer.global_step,
        "throughput": parts.throughput.summary(trainer),
        "bad_steps_skipped": module.bad_steps.skipped,
        "final_loss": None if loss is None else loss.item(),
        "model": "model",
    }
    if recipe.lora is not None:
        results["trained_weights"] = plan.trained
    if plan.region is not None:
        results["frozen_entries"] = plan.region.count
        results["freeze"] = asdict(recipe.freeze)
        results["region"] = asdict(_region_facts(plan, plan.region))
    if tracker is not None:
        model = tracker.history.last if parts.brake is None else parts.brake.model
        results["forgetting"] = model.forgetting.to_dict()
        if (of_average := _forgetting_of_average(parts)) is not None:
            results["forgetting_of_average"] = of_average.to_dict()
    if parts.brake is not None:
        results["brake"] = parts.brake.results()
    return results


def _forgetting_of_average(parts: Parts) -> Forgetting | None:
    """None where no average of the weights was exported and evaluated."""
    if parts.tracker is None or parts.export.figures is None:
        return None
    base = parts.tracker.history.base.figures
    return forgetting(base, parts.export.figures, parts.tracker.target)


def _run(plan: Plan, parts: Parts, folder: Path, texts: list[TextFacts]) -> Run:
    """What the report shows."""
    assert parts.tracker is not None
    return Run(
        folder.resolve().name,
        parts.tracker.history,
        settings=flat(asdict(plan.recipe)),
        region=None if plan.region is None else _region_facts(plan, plan.region),
        texts=texts,
        brake=None if parts.brake is None else parts.brake.brake,
        average=_forgetting_of_average(parts),
    )


def _display(plan: Plan, parts: Parts, folder: Path) -> list[Any]:
    """What the run came to, for people."""
    recipe, tracker = plan.recipe, parts.tracker
    display: list[Any] = []
    if recipe.lora is not None:
        display.append(f"{plan.trained:,} weights of adapters trained, and added to the model's")
    if recipe.average_with_base is not None:
        share = recipe.average_with_base
        display.append(f"the model: the base's weights + {share:g} x (trained - base's)")
    if plan.region is not None:
        display.append(f"{plan.region.count:,} entries {frozen_how(recipe.freeze)}")
    if tracker is not None:
        model = tracker.history.last if parts.brake is None else parts.brake.model
        if parts.export.figures is None:
            table = forgetting_table(
                tracker.base_of(model), model.figures, tracker.target, found=model.forgetting
            )
        else:  # the average's, of all documents
            base = tracker.history.base.figures
            table = forgetting_table(base, parts.export.figures, tracker.target)
        display.append(table)
    if parts.brake is not None:
        display += parts.brake.sentences()
    display.append(f"model: {folder / 'model'}")
    return display


def frozen_how(freezing: Freezing) -> str:
    """What became of the region's entries, as the end of a sentence."""
    how = "frozen" if freezing.clamp is None else f"set to {freezing.clamp:g} and frozen"
    if freezing.first_step:
        how += f" from step {freezing.first_step} on"
    if freezing.last_step:
        return how + f" until step {freezing.last_step}, and trained after it"
    since = "at that step" if freezing.first_step else "in the base"
    return how + (f": each has the bits that it had {since}" if freezing.clamp is None else "")


def _region_facts(plan: Plan, region: Region) -> RegionFacts:
    file, frozen = str(plan.recipe.region), frozen_how(plan.recipe.freeze)
    return region_facts(region, plan.model, file=file, frozen=frozen)


def region_facts(region: Region, model: nn.Module, *, file: str, frozen: str) -> RegionFacts:
    """What ``region`` is in ``model``, which may be on the meta device."""
    coverage = region.coverage(model)
    blocks = [f"{name}." for name, _ in decoder_blocks(model)]
    by_kind: dict[str, dict[str, float]] = {}
    elsewhere = {}
    for name, share in coverage.tensors.items():
        layer = next((n for n, block in enumerate(blocks) if name.startswith(block)), None)
        if layer is not None:
            kind = name.removeprefix(blocks[layer]).removesuffix(".weight")
            by_kind.setdefault(kind, {})[str(layer)] = share
        elif share:
            elsewhere[name] = share
    return RegionFacts(
        entries=region.count,
        share=coverage.model,
        file=file,
        base=region.base.name if region.base else None,
        digest=region.digest,
        made=region.made,
        frozen=frozen,
        coverage={kind: shares for kind, shares in by_kind.items() if any(shares.values())},
        elsewhere=elsewhere,
    )
