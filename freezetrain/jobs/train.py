"""`freezetrain train`: further pre-training with a region frozen and other languages watched."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from freezetrain.callbacks import ForgettingTracker, RegionFreeze
from freezetrain.corpora import Language, read_languages
from freezetrain.errors import UserError
from freezetrain.evaluation.table import forgetting_table
from freezetrain.jobs.evaluate import held_out_documents, window_length
from freezetrain.jobs.outcome import Outcome
from freezetrain.models import check_fit, load_model, load_tokenizer, stored_dtype
from freezetrain.recipe import Freezing, TrainRecipe
from freezetrain.regions import Region
from freezetrain.training.data import TextData
from freezetrain.training.run import export, fit, latest_checkpoint


def tracker(
    recipe: TrainRecipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    trained: Mapping[str, Language],
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
        target=next(iter(trained)) if len(trained) == 1 else None,
        every_n_steps=recipe.watch.every_n_steps,
        max_length=window_length(recipe.watch, model),
        batch_tokens=recipe.watch.batch_tokens,
        results_path=folder / "forgetting.json",
        overwrite=True,  # the folder is this run's own; the file is one of a start that was killed
        table=table,
    )


def refuse_rounding(recipe: TrainRecipe) -> None:
    """Frozen entries are the base's, bit for bit: no type that rounds them may hold the weights."""
    stored = stored_dtype(recipe.model)
    held = torch.bfloat16 if recipe.optimization.precision == "bf16-true" else None
    if held is None and recipe.model.dtype != "stored":
        held = getattr(torch, recipe.model.dtype)
    if stored is None or held is None or torch.promote_types(stored, held) == held:
        return
    raise UserError(
        f"the base is stored in {stored}, and {held} would round the entries that are to be "
        "frozen; use model.dtype float32 and precision 32-true or bf16-mixed"
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


def data_table(data: TextData) -> Table:
    table = Table("language", "documents", "tokens", "bytes", "bytes/token", "sequences")
    for name, packed in data.packed.items():
        facts = (packed.documents, packed.tokens, packed.bytes)
        fertility = f"{packed.bytes / packed.tokens:.2f}"
        table.add_row(name, *map(str, facts), fertility, str(len(packed.sequences)))
    return table


def run(recipe: TrainRecipe, folder: Path, table: bool = True) -> Outcome:
    """Train, or resume the run in ``folder``; ``table``: show each evaluation as it is made."""
    if recipe.region is not None and recipe.freeze.clamp is None:
        refuse_rounding(recipe)
    tokenizer = load_tokenizer(recipe.model)
    languages = read_languages(recipe.texts, recipe.languages)
    data = TextData(languages, tokenizer, recipe.optimization, recipe.weights)
    L.seed_everything(recipe.optimization.seed, verbose=False)
    model = load_model(recipe.model, random_weights=recipe.from_scratch)
    check_fit(model, tokenizer, recipe.optimization.sequence_length)
    region = Region.load(recipe.region, model=model) if recipe.region else None
    watch = tracker(recipe, model, tokenizer, languages, folder, table)
    results: dict[str, Any] = {
        "resumed_from": getattr(latest_checkpoint(folder), "name", None),
        "data": {name: packed.facts() for name, packed in data.packed.items()},
    }
    # The tracker first: it sees the base before a clamp.
    callbacks: list[Callback] = [] if watch is None else [watch]
    callbacks += [] if region is None else [RegionFreeze(region, **asdict(recipe.freeze))]
    trainer = fit(model, data, folder, callbacks, recipe.checkpoint_every)
    results["steps"] = trainer.global_step
    loss = trainer.callback_metrics.get("train/loss")  # None if all steps were done before
    results["final_loss"] = None if loss is None else loss.item()
    results["model"] = "model"
    display: list[Any] = [data_table(data)]
    if region is not None:
        results["frozen_entries"] = region.count
        results["freeze"] = asdict(recipe.freeze)
        display.append(f"{region.count:,} entries {frozen_how(recipe.freeze)}")
    if watch is not None:
        history = watch.history
        results["forgetting"] = history.forgetting().to_dict()
        display.append(forgetting_table(history.base.figures, history.last.figures, history.target))
    if not (folder / "model").exists():  # a start that was killed after its export left it whole
        export(model, tokenizer, folder / "model")
    display.append(f"model: {folder / 'model'}")
    return Outcome(results, display)
