"""`freezetrain train`: further pre-training with a region frozen and other languages watched."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
from freezetrain.callbacks.near_base import check_importance
from freezetrain.data.tokens import bars
from freezetrain.errors import UserError
from freezetrain.evaluation import forgetting, forgetting_table
from freezetrain.evaluation.tables import texts_rows, texts_table
from freezetrain.files import require_space
from freezetrain.measuring.held_out import held_out_documents, window_length
from freezetrain.models import (
    check_fit,
    check_length,
    load_tokenizer,
    local_folder,
    meta_model,
    stored_dtype,
)
from freezetrain.ranks import current_launch
from freezetrain.regions import Region, decoder_blocks
from freezetrain.report.runs import PAGE, train_run
from freezetrain.report.runs_page import render_runs
from freezetrain.run_folder import Outcome
from freezetrain.scoring import Scores
from freezetrain.scoring.scores import language_scores
from freezetrain.training.adapters import add_adapters
from freezetrain.training.checkpoints import latest_checkpoint
from freezetrain.training.data import read_data
from freezetrain.training.engines import kind_of, precision, trained_in_16_bits, world_size
from freezetrain.training.module import CausalLM
from freezetrain.training.recipe import Freezing, TrainRecipe
from freezetrain.training.sharded import loader
from freezetrain.training.trainer import Export, fit


def tracker(
    recipe: TrainRecipe,
    shape: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    trained: Sequence[str],
    folder: Path,
    table: bool,
) -> ForgettingTracker | None:
    """What watches the languages: a single one trained on is the target, several are left out."""
    if recipe.watch.off:
        return None
    documents = held_out_documents(recipe.watch, tokenizer)
    if len(trained) > 1:
        documents = {name: texts for name, texts in documents.items() if name not in trained}
    return ForgettingTracker(
        documents,
        target=trained[0] if len(trained) == 1 else None,
        every_n_steps=recipe.watch.every_n_steps,
        every_n_tokens=recipe.watch.every_n_tokens,
        at_samples=recipe.watch.at_samples,
        time_share=recipe.watch.time_share,
        max_length=window_length(recipe.watch, shape),
        overlap=recipe.watch.overlap,
        batch_tokens=recipe.watch.batch_tokens,
        results_path=folder / "forgetting.json",
        overwrite=True,  # the folder is this run's own; the file is one of a start that was killed
        table=table,
    )


def brake_of(
    recipe: TrainRecipe, watch: ForgettingTracker | None, folder: Path
) -> ForgettingBrake | None:
    """What holds the run to the limits of forgetting."""
    if recipe.brake is None or watch is None:
        return None
    # The folder is this run's own; what is in it was kept by a start that was killed.
    kept = folder / "kept" if recipe.brake.goes_back else None
    return ForgettingBrake(watch, folder=kept, overwrite=True, **asdict(recipe.brake))


def refuse_types(recipe: TrainRecipe) -> None:
    """UserError for weights in float16, and for a type that would round frozen entries.

    They are the base's, bit for bit. A base that does not say its type may be in float32.
    """
    stored = stored_dtype(recipe.model)
    if recipe.model.dtype == "stored" and stored == torch.float16:
        raise UserError(
            "model.dtype is stored and the base is stored in float16, which overflows in training; "
            "use float32 or bfloat16"
        )
    if recipe.region is None or recipe.freeze.clamp is not None:
        return
    types = {"export_dtype": recipe.export_dtype, "model.dtype": recipe.model.dtype}
    if precision(recipe.optimization) == "bf16-true":
        types["optimization.precision"] = "bfloat16"
    for field, name in types.items():
        held = None if name == "stored" else getattr(torch, name)
        widest = stored or torch.float32
        if held is None or torch.promote_types(widest, held) == held:
            continue
        raise UserError(
            f"the base is stored in {stored or 'a type that its config.json leaves open'}, and "
            f"{field}, {held}, would round the entries that are to be frozen; use model.dtype "
            "float32, export_dtype stored and precision 32-true or bf16-mixed"
        )


def frozen_how(told: Freezing) -> str:
    """What became of the region's entries, as the end of a sentence."""
    how = "frozen" if told.clamp is None else f"set to {told.clamp:g} and frozen"
    if told.first_step:
        how += f" from step {told.first_step} on"
    if told.last_step:
        return how + f" until step {told.last_step}, and trained after it"
    since = "at that step" if told.first_step else "in the base"
    return how + (f": each has the bits that it had {since}" if told.clamp is None else "")


def region_freeze(recipe: TrainRecipe, region: Region, kind: str) -> RegionFreeze:
    """The callback; DeepSpeed's fp32 masters start from the stored values, not rounded ones.

    In 16 bits it makes them from weights in bfloat16, which a base stored in that loses nothing in.
    A freeze that begins later takes what training has made of them.
    """
    rounds = kind.startswith("zero") and trained_in_16_bits(recipe.optimization)
    rounds = rounds and stored_dtype(recipe.model) != torch.bfloat16
    exact = rounds and recipe.freeze.clamp is None and not recipe.freeze.first_step
    base = local_folder(recipe.model) if exact else None
    return RegionFreeze(region, base=base, **asdict(recipe.freeze))


def shape_and_region(recipe: TrainRecipe) -> tuple[PreTrainedModel, Region | None]:
    """The model without weights, with adapters, and the region: what a dry run looks at too.

    UserError where a type rounds frozen entries, or sequence length or region do not fit the model.
    """
    refuse_types(recipe)
    shape = meta_model(recipe.model, trained_in_16_bits(recipe.optimization))
    check_length(shape, recipe.optimization.sequence_length)
    if recipe.lora is not None:
        add_adapters(shape, recipe.lora, recipe.optimization.seed)
    if recipe.region is None:
        return shape, None
    region = Region.load(recipe.region)
    region.resolve(shape)
    return shape, region


def trained_weights(shape: PreTrainedModel) -> int:
    """How many weights are trained: all, or those of the adapters."""
    return sum(p.numel() for p in shape.parameters() if p.requires_grad)


def checkpoint_bytes(
    recipe: TrainRecipe, kind: str, weights: int, trained: int | None = None
) -> int:
    """Bytes of one checkpoint of so many weights, of all ranks together.

    The weights and, of those that are ``trained`` (None: all), AdamW's two moments in fp32; under
    ZeRO-1 and 2 the weights as they are computed with too, which ZeRO-3's checkpoint does without;
    the average of the weights where there is one.
    """
    copies = 0
    if kind in ("zero-1", "zero-2"):
        copies = 2 if trained_in_16_bits(recipe.optimization) else 4
    averages = 0 if recipe.optimization.ema_decay is None else 4
    return (4 + copies) * weights + (8 + averages) * (weights if trained is None else trained)


def hyperparameters(recipe: TrainRecipe) -> dict[str, Any]:
    """What tells runs apart beside each other in TensorBoard, by the recipe's names."""
    told = asdict(recipe)
    names = [
        *("languages", "replay", "region", "freeze", "penalty", "average_with_base", "lora"),
        *("optimization", "brake", "from_scratch"),
    ]
    engine = {"kind": recipe.engine.kind}
    return {"model": recipe.model.path, "engine": engine, **{name: told[name] for name in names}}


def kept_bytes(recipe: TrainRecipe, kind: str, weights: int) -> int:
    """Bytes of the weights that the brake keeps; there are two such checkpoints at times."""
    if recipe.brake is None or not recipe.brake.goes_back:
        return 0
    return checkpoint_bytes(recipe, kind, weights) if kind.startswith("zero") else 4 * weights


def run(recipe: TrainRecipe, folder: Path, table: bool = True, progress: bool = True) -> Outcome:
    """Train, or resume the run in ``folder``.

    ``table``: show the texts before training starts, and each evaluation as it is made, and leave a
    report. ``progress``: show bars.
    """
    settings, launch = recipe.optimization, current_launch()
    world = world_size(recipe.engine, launch)
    kind = kind_of(recipe.engine, world)
    settings.accumulate(world)  # refuses what does not divide
    # What can be refused is, before texts are read.
    tokenizer = load_tokenizer(recipe.model)
    shape, region = shape_and_region(recipe)
    check_fit(shape, tokenizer, settings.sequence_length)
    weights = sum(parameter.numel() for parameter in shape.parameters())
    trained = trained_weights(shape)
    room = 2 * checkpoint_bytes(recipe, kind, weights, trained) + 4 * weights
    room += 2 * kept_bytes(recipe, kind, weights)
    require_space(folder, room, "checkpoints and the model")
    penalty = penalty_of(recipe, shape)
    with bars(shown=progress):
        data = read_data(recipe, tokenizer, world)
    recipe.freeze.check_steps(data.steps)
    if table and launch.rank == 0:
        Console().print(data.table())
    results: dict[str, Any] = {
        "resumed_from": getattr(latest_checkpoint(folder), "name", None),
        "data": data.facts(),
    }
    watch = tracker(recipe, shape, tokenizer, list(data.packed), folder, table)
    if watch is not None:
        results["texts"] = texts_rows(watch.documents, tokenizer)
        if table and launch.rank == 0:
            Console().print(texts_table(results["texts"], title="held-out texts"))
    brake = brake_of(recipe, watch, folder)
    average = average_of(recipe)
    stored = stored_dtype(recipe.model)
    if stored is None and recipe.model.dtype != "stored":  # nobody says, so as it is trained
        stored = getattr(torch, recipe.model.dtype)
    dtype = stored if recipe.export_dtype == "stored" else getattr(torch, recipe.export_dtype)
    export = Export(tokenizer, folder / "model", dtype, average, watch)
    throughput = Throughput(torch.bfloat16 if trained_in_16_bits(settings) else None)
    # The tracker first: it sees the base before a clamp. The brake before what looks at the end.
    freeze = None if region is None else region_freeze(recipe, region, kind)
    board = None if watch is None else ForgettingBoard(watch, brake, hyperparameters(recipe))
    all_of_them = (watch, brake, freeze, penalty, average, export, throughput, board)
    callbacks = [callback for callback in all_of_them if callback is not None]
    L.seed_everything(settings.seed, verbose=False)
    trainer = fit(
        loader(recipe, kind),
        data,
        folder,
        callbacks,
        recipe.checkpoint_every,
        progress,
        recipe.engine,
    )
    if brake is not None:
        brake.ensure(trainer)
    export.ensure(trainer)
    assert isinstance(trainer.lightning_module, CausalLM)
    loss = trainer.callback_metrics.get("train/loss")  # None if all steps were done before
    results |= {
        "steps": trainer.global_step,
        "throughput": throughput.summary(trainer),
        "bad_steps_skipped": trainer.lightning_module.bad_steps.skipped,
        "final_loss": None if loss is None else loss.item(),
        "model": "model",
    }
    display: list[Any] = []
    if recipe.lora is not None:
        results["trained_weights"] = trained
        display.append(f"{trained:,} weights of adapters trained, and added to the model's")
    if recipe.average_with_base is not None:
        share = recipe.average_with_base
        display.append(f"the model: the base's weights + {share:g} x (trained - base's)")
    if region is not None:
        how = frozen_how(recipe.freeze)
        results |= {"frozen_entries": region.count, "freeze": asdict(recipe.freeze)}
        results["region"] = region_facts(region, shape, file=str(recipe.region), frozen=how)
        display.append(f"{region.count:,} entries {how}")
    if watch is not None:
        history = watch.history
        model = history.last if brake is None else brake.model
        found = model.forgetting
        results["forgetting"] = found.to_dict()
        before, last = watch.base_of(model), model.figures
        if export.figures is not None:  # of all documents
            before, last = history.base.figures, export.figures
            found = forgetting(before, last, history.target)
            results["forgetting_of_average"] = found.to_dict()
        display.append(forgetting_table(before, last, history.target, found=found))
    if brake is not None:
        results["brake"] = brake.results()
        display += brake.sentences()
    display.append(f"model: {folder / 'model'}")
    # A run whose time was used up before its first step has nothing to show.
    shown = watch is not None and len(watch.history.evaluations) > 1
    if table and shown and launch.rank == 0:
        name = folder.resolve().name
        render_runs([train_run(folder, name, asdict(recipe), results)], folder / PAGE)
        display.append(f"report: {folder / PAGE}")
    return Outcome(results, display)


def penalty_of(recipe: TrainRecipe, shape: PreTrainedModel) -> BasePenalty | None:
    """The callback of ``recipe.penalty``; ``shape`` is the model without weights.

    UserError where the folder holds no scores, scores of another method, or of another model.
    """
    if recipe.penalty is None:
        return None
    if recipe.penalty.fisher is None:
        return BasePenalty(recipe.penalty.strength)
    scores = Scores.sum(
        list(language_scores(recipe.penalty.fisher, recipe.penalty.languages or ()).values())
    )
    if scores.made["method"] != "fisher":
        raise UserError(
            f"penalty.fisher must be a folder of scores of the method fisher, and those in "
            f"{recipe.penalty.fisher} are of {scores.made['method']}; make them with `freezetrain "
            "score --methods '[fisher]'`"
        )
    check_importance(scores, shape)
    return BasePenalty(recipe.penalty.strength, scores)


def average_of(recipe: TrainRecipe) -> WeightAverage | BaseAverage | None:
    """What is exported instead of the last weights, by the recipe."""
    if recipe.average_with_base is not None:
        return BaseAverage(recipe.average_with_base)
    decay = recipe.optimization.ema_decay
    return None if decay is None else WeightAverage(decay)


def region_facts(region: Region, model: nn.Module, *, file: str, frozen: str) -> dict[str, Any]:
    """For results and report, ready for JSON; ``model`` may be on the meta device.

    ``share`` is of all the model's weights. ``coverage`` holds, for each kind of parameter in the
    decoder blocks that has an entry, layer → share in the region; ``elsewhere`` the shares of
    parameters outside the blocks. ``frozen`` says what training did to the entries.
    """
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
    return {
        "entries": region.count,
        "share": coverage.model,
        "file": file,
        "base": region.base.name if region.base else None,
        "digest": region.digest,
        "made": region.made,
        "frozen": frozen,
        "coverage": {kind: shares for kind, shares in by_kind.items() if any(shares.values())},
        "elsewhere": elsewhere,
    }
