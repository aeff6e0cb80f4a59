"""The callbacks of a run, from its recipe and in the order in which they have their turn."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from transformers import PreTrainedTokenizerBase

from freezetrain.callbacks import (
    BaseAverage,
    BasePenalty,
    BasePull,
    ForgettingBoard,
    ForgettingBrake,
    ForgettingTracker,
    RegionFreeze,
    Throughput,
    WeightAverage,
)
from freezetrain.evaluation import Evaluation, Forgetting, forgetting
from freezetrain.loggers.record import RunRecord
from freezetrain.measuring.held_out import held_out_documents, window_length
from freezetrain.models import local_folder, stored_dtype, stored_dtypes
from freezetrain.regions import Region
from freezetrain.report.run import FORGETTING, RegionFacts
from freezetrain.training.data import TextData
from freezetrain.training.engines import trained_in_16_bits
from freezetrain.training.export import Types
from freezetrain.training.plan import Plan
from freezetrain.training.recipe import TrainRecipe
from freezetrain.training.trainer import Export


@dataclass(frozen=True)
class Parts:
    """None: the run has none of that kind."""

    tracker: ForgettingTracker | None
    """The first: it evaluates the base before a region is set to a value."""
    brake: ForgettingBrake | None
    """Before what looks at the weights in the end."""
    freeze: RegionFreeze | None
    pull: BasePull | None
    penalty: BasePenalty | None
    average: WeightAverage | BaseAverage | None
    """What is exported instead of the last weights."""
    export: Export
    throughput: Throughput
    board: ForgettingBoard | None
    record: RunRecord
    """Last: it says what became of the run."""

    def in_order(self) -> list[L.Callback]:
        """Those that the run has."""
        parts = (getattr(self, field.name) for field in fields(self))
        return [part for part in parts if part is not None]

    @property
    def model(self) -> Evaluation | None:
        """The evaluation of the model that the run leaves: the brake's choice, else the last."""
        if self.brake is not None:
            return self.brake.model
        return None if self.tracker is None else self.tracker.history.last

    @property
    def forgetting_of_average(self) -> Forgetting | None:
        """None where no average of the weights was exported and evaluated."""
        if self.tracker is None or self.export.figures is None:
            return None
        base = self.tracker.history.base.figures
        return forgetting(base, self.export.figures, self.tracker.target)


def make_parts(
    plan: Plan,
    tokenizer: PreTrainedTokenizerBase,
    data: TextData,
    folder: Path,
    table: bool,
    settings: Mapping[str, Any],
) -> Parts:
    """The callbacks that ``plan`` asks for. UserError where a language has no held-out text.

    ``settings``: what loggers are told of the run.
    """
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
        board = ForgettingBoard(tracker, brake)
    types, tied = _export_dtype(recipe), recipe.export_tied_head
    export = Export(tokenizer, folder / "model", types, average, tracker, tied)

    def left() -> tuple[int, Forgetting] | None:
        if (model := parts.model) is None:
            return None
        return model.step, parts.forgetting_of_average or model.forgetting

    parts = Parts(
        tracker,
        brake,
        freeze,
        plan.pull,
        plan.penalty,
        average,
        export,
        Throughput(torch.bfloat16 if trained_in_16_bits(recipe.optimization) else None),
        board,
        RunRecord(settings, left),
    )
    return parts


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


def hyperparameters(recipe: TrainRecipe, region: RegionFacts | None) -> dict[str, Any]:
    """What tells runs apart in a logger, by the recipe's names, and what is frozen."""
    settings = asdict(recipe)
    names = [
        *("languages", "replay", "rehearse", "region", "freeze", "pull", "penalty"),
        *("average_with_base", "lora"),
        *("optimization", "brake", "from_scratch"),
    ]
    return {
        "model": recipe.model.path,
        "engine": {"kind": recipe.engine.kind},
        **{name: settings[name] for name in names},
        "frozen": region
        and {"entries": region.entries, "share": region.share, "digest": region.digest},
    }


def _export_dtype(recipe: TrainRecipe) -> Types:
    """The type of each tensor in the base's files, or one for all; None: as they are held."""
    if recipe.export_dtype != "stored":
        return cast(torch.dtype, getattr(torch, recipe.export_dtype))
    types = {} if recipe.from_scratch else stored_dtypes(recipe.model)
    if len(set(types.values())) > 1:
        return types
    stored = stored_dtype(recipe.model)
    if stored is None and recipe.model.dtype != "stored":  # nobody says, so as it is trained
        return cast(torch.dtype, getattr(torch, recipe.model.dtype))
    return stored
