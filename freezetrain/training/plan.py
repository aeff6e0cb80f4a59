"""What a training run will be, told from its recipe and its model's configuration alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from freezetrain.callbacks import BasePenalty, BasePull
from freezetrain.callbacks.near_base import check_importance
from freezetrain.devices import kind_of, world_size
from freezetrain.errors import UserError
from freezetrain.models import (
    check_length,
    describe,
    load_model,
    local_folder,
    meta_model,
    stored_dtype,
)
from freezetrain.ranks import Launch, current_launch
from freezetrain.recipe.check import check
from freezetrain.regions import Base, Region
from freezetrain.regions.base import fingerprint
from freezetrain.rehearsal import Rehearsal
from freezetrain.scoring import Scores
from freezetrain.scoring.scores import language_scores
from freezetrain.stored_model import fingerprint_of_files
from freezetrain.training.adapters import add_adapters
from freezetrain.training.checkpointed import require_checkpointing
from freezetrain.training.engines import (
    deepspeed_config,
    precision,
    refuse_settings_that_freeze_nothing,
    trained_in_16_bits,
)
from freezetrain.training.groups import parameter_groups
from freezetrain.training.optimizer_kinds import require_optimizer, state_bytes
from freezetrain.training.recipe import Penalty, Pull, TrainRecipe
from freezetrain.training.recomputation import Recomputation, decide


@dataclass(frozen=True)
class Plan:
    """A run before texts are read and weights are loaded."""

    recipe: TrainRecipe
    """With engine.gradient_checkpointing decided."""
    world: int
    """Ranks."""
    engine: str
    """one, ddp, fsdp2, zero-1, zero-2 or zero-3."""
    accumulate: int
    """Micro-batches of a rank in an optimizer step."""
    model: PreTrainedModel
    """On the meta device, with adapters."""
    region: Region | None
    pull: BasePull | None
    penalty: BasePenalty | None
    rehearsal: Rehearsal | None = None
    recomputation: Recomputation | None = None
    """How it was decided, where the recipe left it open."""

    @property
    def pulled(self) -> list[Region]:
        """Regions that are pulled with a strength of their own."""
        return _pulled(self.pull)

    @cached_property
    def weights(self) -> int:
        """All of the model's."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @cached_property
    def trained(self) -> int:
        """Weights that are trained: all, or those of the adapters."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of one checkpoint, of all ranks together.

        The weights in fp32 and, of those that are trained, the optimizer's state; under ZeRO-1 and
        2 the weights as they are computed with too, which ZeRO-3's checkpoint does without; the
        average of the weights where there is one.
        """
        averages = 0 if self.recipe.optimization.ema_decay is None else 4
        return self._bytes_of_all() + self.state_bytes + averages * self.trained

    @cached_property
    def state_bytes(self) -> int:
        """Bytes of the optimizer's state, of all ranks together."""
        flat = self.engine.startswith("zero")
        return int(state_bytes(self.model, self.recipe.optimization, 4, flat))

    @property
    def kept_bytes(self) -> int:
        """Bytes of the weights that the brake keeps; there are two such checkpoints at times."""
        brake = self.recipe.brake
        if brake is None or not brake.goes_back:
            return 0
        state = self.state_bytes if self.engine.startswith("zero") else 0
        return self._bytes_of_all() + state

    @property
    def disk_bytes(self) -> int:
        """Bytes that the run's folder takes at most: two of each checkpoint, and the model."""
        return 2 * self.checkpoint_bytes + 2 * self.kept_bytes + 4 * self.weights

    def _bytes_of_all(self) -> int:
        computed = 0
        if self.engine in ("zero-1", "zero-2"):
            computed = 2 if trained_in_16_bits(self.recipe.optimization) else 4
        return (4 + computed) * self.weights


def make_plan(recipe: TrainRecipe, launch: Launch, tokenizer: str | None = None) -> Plan:
    """Raises UserError for all that can be refused before texts are read and weights loaded.

    ``tokenizer``: digest of the base's, to be compared with a rehearsal's; None: do not.
    """
    world = world_size(recipe.engine, launch)
    replicas, expected = recipe.engine.replicas, f"a number that divides the {world} devices"
    check(world % replicas == 0, "engine.replicas", expected, replicas)
    accumulate = recipe.optimization.accumulate(world)
    if recipe.engine.deepspeed:  # which the estimate reads
        deepspeed_config(recipe.engine, recipe.optimization)
    engine = kind_of(recipe.engine, world)
    require_optimizer(
        recipe.optimization,
        held=recipe.region is not None or recipe.pull is not None,
        flat=engine.startswith("zero"),
    )
    model, region = shape_and_region(recipe)
    parameter_groups(model, recipe.optimization)  # patterns that fit nothing
    require_checkpointing(model, recipe.engine.gradient_checkpointing)
    pull, penalty = pull_of(recipe, model), penalty_of(recipe, model)
    rehearsal = rehearsal_of(recipe, tokenizer)
    stored = None if pull is None else stored_dtype(recipe.model)
    decided = decide(recipe, model, launch, world, region, _pulled(pull), stored)
    return Plan(
        decided[0], world, engine, accumulate, model, region, pull, penalty, rehearsal, decided[1]
    )


def _pulled(pull: BasePull | None) -> list[Region]:
    pairs: Any = () if pull is None else pull.regions
    return [region for region, _ in pairs]


def shape_and_region(recipe: TrainRecipe) -> tuple[PreTrainedModel, Region | None]:
    """The model as :func:`shape_of` gives it, and the region; UserError where they do not fit."""
    model = shape_of(recipe)
    if recipe.region is None:
        return model, None
    region = Region.load(recipe.region)
    region.resolve(model)
    return model, region


def shape_of(recipe: TrainRecipe) -> PreTrainedModel:
    """The model on the meta device, with adapters. The region's file need not be there.

    UserError where a type rounds frozen entries or cannot hold the value that they are set to, or
    where sequence length or adapters do not fit the model.
    """
    refuse_types(recipe)
    refuse_clamp(recipe)
    if recipe.region is not None:
        refuse_settings_that_freeze_nothing(recipe.engine)
    model = meta_model(recipe.model, trained_in_16_bits(recipe.optimization), recipe.from_scratch)
    check_length(model, recipe.optimization.sequence_length)
    if recipe.lora is not None:
        add_adapters(model, recipe.lora, recipe.optimization.seed)
    return model


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
    widest = stored or torch.float32
    for field, name in types.items():
        if name == "stored":
            continue
        dtype = getattr(torch, name)
        if torch.promote_types(widest, dtype) != dtype:
            base = stored or "a type that its config.json leaves open"
            raise UserError(
                f"the base is stored in {base}, and {field}, {dtype}, would round the entries that "
                "are to be frozen; use model.dtype float32, export_dtype stored and precision "
                "32-true or bf16-mixed"
            )


def refuse_clamp(recipe: TrainRecipe) -> None:
    """UserError for a value of frozen entries that a type on the way to the export cannot hold."""
    value = recipe.freeze.clamp
    if recipe.region is None or value is None:
        return
    types = {"model.dtype": recipe.model.dtype, "export_dtype": recipe.export_dtype}
    if trained_in_16_bits(recipe.optimization):
        types["optimization.precision"] = "bfloat16"
    stored = stored_dtype(recipe.model) or torch.float32
    for field, name in types.items():
        dtype = stored if name == "stored" else getattr(torch, name)
        held = torch.tensor(value, dtype=torch.float64).to(dtype)
        if not held.isfinite() or (value and not held):
            size = "large" if value and held else "small"
            limits = torch.finfo(dtype)
            raise UserError(
                f"freeze.clamp is {value:g}, which is too {size} for {field}, {dtype}; give 0, or "
                f"a value of {limits.tiny:.2g} to {limits.max:.4g} above or below it"
            )


def pull_of(recipe: TrainRecipe, model: PreTrainedModel) -> BasePull | None:
    """The callback of ``recipe.pull``; ``model`` may be without weights.

    UserError for regions that do not fit the model, for scores as :func:`penalty_of`, and for
    either made for another base.
    """
    if recipe.pull is None:
        return None
    fields = recipe.pull
    regions = {file: Region.load(file) for file in fields.regions}
    for region in regions.values():
        region.resolve(model)
    scores = None if fields.fisher is None else _fisher("pull", fields, model)
    bases = {f"the region {file}": region.base for file, region in regions.items()}
    if scores is not None:
        bases[f"the scores in {fields.fisher}"] = scores.base
    _require_base(recipe, model, bases)
    return BasePull(
        fields.strength,
        local_folder(recipe.model),
        [(region, fields.regions[file]) for file, region in regions.items()],
        scores,
        fields.on_cpu,
        fields.log_every,
    )


def _require_base(
    recipe: TrainRecipe, model: PreTrainedModel, bases: Mapping[str, Base | None]
) -> None:
    """UserError where something of ``bases``, by what it is, was made for another base.

    By the base's files, also where a run is resumed. Where those are not here, as in a dry run, or
    hold other tensors than the model has in memory, it is not compared.
    """
    known = {what: base for what, base in bases.items() if base is not None}
    files = describe(recipe.model).files if known else None
    found = None if files is None else fingerprint_of_files(model, files)
    for what, base in known.items():
        if found is not None and base.fingerprint != found:
            raise UserError(
                f"{what}: made for another model, {base.name or 'unnamed'} with the fingerprint "
                f"{base.fingerprint[:12]}, than {recipe.model.path}; make it for that one"
            )


def penalty_of(recipe: TrainRecipe, model: PreTrainedModel) -> BasePenalty | None:
    """The callback of ``recipe.penalty``; ``model`` may be without weights.

    UserError where the folder holds no scores, scores of another method, or of another model.
    """
    if recipe.penalty is None:
        return None
    if recipe.penalty.fisher is None:
        return BasePenalty(recipe.penalty.strength)
    return BasePenalty(recipe.penalty.strength, _fisher("penalty", recipe.penalty, model))


def _fisher(where: str, fields: Pull | Penalty, model: PreTrainedModel) -> Scores:
    """The sum of the fisher scores that ``fields`` of the recipe, called ``where``, name."""
    assert fields.fisher is not None
    by_language = language_scores(fields.fisher, fields.languages or ())
    scores = Scores.sum(list(by_language.values()))
    if scores.made["method"] != "fisher":
        raise UserError(
            f"{where}.fisher must be a folder of scores of the method fisher, and those in "
            f"{fields.fisher} are of {scores.made['method']}; make them with `freezetrain "
            "score --methods '[fisher]'`"
        )
    check_importance(scores, model)
    return scores


def rehearsal_of(recipe: TrainRecipe, tokenizer: str | None = None) -> Rehearsal | None:
    """What is rehearsed, all of it read once and checked by one process of each machine.

    UserError where the folder is none, where a piece of it is damaged, and where it was not drawn
    by this base: by the base's files, also where a run is resumed. Where those are not here, as in
    a dry run, it is not compared.
    """
    if recipe.rehearse is None:
        return None
    rehearsal = Rehearsal(recipe.rehearse.folder, check=current_launch().local_rank == 0)
    model = meta_model(recipe.model)
    files = describe(recipe.model).files
    found = rehearsal.made.base.fingerprint
    if files is not None:
        # Fused experts have to be loaded to be told.
        found = fingerprint_of_files(model, files) or fingerprint(load_model(recipe.model))
    rehearsal.require_base(found, tokenizer, recipe.model.path)
    head: Any = model.get_output_embeddings() or model.get_input_embeddings()
    tokens = int(head.weight.shape[0])
    if rehearsal.made.vocabulary > tokens:
        raise UserError(
            f"the rehearsal in {rehearsal.folder} is over {rehearsal.made.vocabulary} tokens and "
            f"the model {recipe.model.path} has {tokens}; make one with it"
        )
    return rehearsal
