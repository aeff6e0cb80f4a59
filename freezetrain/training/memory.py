"""How much memory a rank takes, estimated from shapes before a run is started.

What each engine keeps was read in its code (PyTorch 2.13: DistributedDataParallel, fully_shard,
AdamW, Muon; DeepSpeed 0.19.8: runtime/zero/stage_1_and_2.py, stage3.py, config.py; Lightning
2.6.6: plugins/precision; transformers 5.23: Adafactor; bitsandbytes 0.50), and for freezing in
freezetrain.freezing; benchmarks/memory.py compares with real runs. Not in it: CUDA's context,
kernels' workspaces, and what the allocator leaves unused between blocks.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from freezetrain.errors import UserError
from freezetrain.files import readable
from freezetrain.freezing.pulled_parts import AT_ONCE
from freezetrain.recipe.optimization import Optimization
from freezetrain.regions import Region, decoder_blocks
from freezetrain.training.batch_memory import batch_parts, rehearsal_parts
from freezetrain.training.groups import parameter_groups
from freezetrain.training.memory_parts import ALWAYS, PASS, TRAINING, Part, Shapes
from freezetrain.training.optimizer_kinds import state_bytes
from freezetrain.training.recipe import Pull, TrainRecipe

# DeepSpeed's defaults, in elements.
_ZERO_DEFAULTS = {
    "reduce_bucket_size": 5e8,
    "stage3_max_live_parameters": 1e9,
    "sub_group_size": 1e9,
}


_ARITHMETIC = "arithmetic of the optimizer"


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of one rank, the one that takes most."""

    parts: tuple[Part, ...]

    def at(self, moment: str) -> float:
        """Bytes on the device at one moment of ``ALWAYS``."""
        return sum(part.device for part in self.parts if moment in part.during)

    @property
    def moment(self) -> str:
        """When the device holds most."""
        return max(ALWAYS, key=self.at)

    @property
    def peak(self) -> int:
        """Bytes on the device at most."""
        return int(self.at(self.moment))

    @property
    def host(self) -> int:
        """Bytes in CPU memory at most, beside the device's."""
        return int(
            max(sum(part.host for part in self.parts if when in part.during) for when in ALWAYS)
        )

    @property
    def region(self) -> int:
        """Bytes on the device that the frozen region takes at the peak."""
        parts = [part for part in self.parts if self.moment in part.during]
        return int(sum(part.device for part in parts if part.name.startswith("region")))


def estimate(
    model: PreTrainedModel,
    recipe: TrainRecipe,
    world: int,
    region: Region | None = None,
    on_gpu: bool = True,
    *,
    pulled: Sequence[Region] = (),
    stored: torch.dtype | None = None,
) -> MemoryEstimate:
    """Bytes that each of ``world`` ranks takes to train ``model``, which is on the meta device.

    What needs no gradient, as beside adapters, has neither gradients nor moments. ``region``: what
    is frozen. ``on_gpu``: else CPU memory is the device. ``pulled``: regions with a strength of
    their own. ``stored``: type of the base's files, in which a pull keeps it; None: float32.
    """
    shapes = Shapes(model, recipe, world)
    parts = [
        *_state(shapes, model, recipe),
        _arithmetic(shapes, model, recipe, on_gpu),
        *batch_parts(shapes, model, recipe, on_gpu),
    ]
    if recipe.rehearse is not None and recipe.rehearse.loss == "kl":
        parts += rehearsal_parts(shapes, model, recipe, on_gpu)
    if shapes.zero:
        parts += _deepspeed(shapes, recipe, on_gpu)
    elif shapes.kind == "fsdp2":
        parts.append(_gathered(shapes, model))
    if region is not None:
        parts += _region(shapes, recipe, region, on_gpu)
    if recipe.pull is not None:
        parts += _pull(shapes, recipe.pull, pulled, stored or torch.float32, on_gpu)
    if recipe.engine.offload != "none":
        state = state_name(recipe.optimization.optimizer)
        parts = [_offloaded(part, recipe.engine.offload, state) for part in parts]
    if not on_gpu:  # one memory, and the model is where it was loaded
        parts = [
            replace(part, device=part.device + part.host, host=0)
            for part in parts
            if part.during != ("load",)
        ]
    return MemoryEstimate(tuple(part for part in parts if part.device or part.host))


def require_memory(model: PreTrainedModel, sequences: int, length: int, name: str) -> None:
    """UserError for a batch of which what each block hands on does not fit into memory.

    That much is there in any backward pass, in 16 bits at least and also where activations are
    computed again. ``model`` may be on the meta device; ``name``: the field that says how many
    ``sequences`` of ``length`` tokens are taken at once.
    """
    width = getattr(model.config.get_text_config(), "hidden_size", None) or 1
    needed = 2 * sequences * length * int(width) * len(decoder_blocks(model))
    there = memory_there()
    if needed > there:
        raise UserError(
            f"{name} is {sequences}, of which the hidden states alone take {readable(needed)}, and "
            f"there are {readable(there)} of memory; lower it"
        )


def memory_there() -> int:
    """Bytes of a GPU here or, without one, of the machine."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _state(shapes: Shapes, model: PreTrainedModel, recipe: TrainRecipe) -> list[Part]:
    """What a rank holds from step to step."""
    zero, held = shapes.zero, shapes.held
    loading = 0 if shapes.split else shapes.loaded * shapes.weights
    parts = [
        Part("weights", held * shapes.local, ALWAYS),
        Part("the model, while it is loaded", 0, ("load",), host=loading),
    ]
    gradients = held * (shapes.weights if zero == 1 else shapes.trained)
    state = _state_of_a_weight(model, recipe.optimization, 4 if zero else held, flat=bool(zero))
    name = state_name(recipe.optimization.optimizer)
    if zero:
        parts.append(Part("fp32 masters", 4 * shapes.share))
        parts.append(Part(name, state * shapes.share))
        if zero == 2:
            gradients = held * shapes.share
    else:
        parts.append(Part(name, state * shapes.trained))
    # DDP's buckets and ZeRO-3's buffer stay.
    during: tuple[str, ...]
    during = TRAINING if shapes.kind == "ddp" or zero == 3 else ("backward", "step")
    if shapes.accumulates:
        during = (*during, "forward", "loss")
    parts.append(Part("gradients", gradients, during))
    if recipe.optimization.ema_decay is not None:
        parts.append(Part("average of the weights", 4 * shapes.local))
        copied = shapes.loaded * shapes.weights  # in CPU memory, before it is moved
        parts.append(Part("the average, while it is made", 0, ("load",), host=copied))
    if recipe.penalty is not None:
        factors = 0 if recipe.penalty.fisher is None else 4 * shapes.weights
        parts.append(Part("the penalty's base and factors", held * shapes.weights + factors))
        parts.append(Part("the penalty's arithmetic", 12 * shapes.largest_step / held, ("step",)))
    if recipe.penalty is not None or recipe.average_with_base is not None:
        during = ("load",) if recipe.average_with_base is None else ALWAYS
        parts.append(Part("copy of the base", 0, during, host=shapes.loaded * shapes.weights))
    return parts


def _arithmetic(shapes: Shapes, model: PreTrainedModel, recipe: TrainRecipe, on_gpu: bool) -> Part:
    """What a step takes on the way, of one tensor after another; AdamW's fused kernel nothing.

    Lion and Adafactor hold two tensors of its size, bitsandbytes five on a CPU and none on a GPU,
    Muon one beside eight in 16 bits, of matrices of the decoder blocks. Of a class that is given
    by its path it is not known.
    """
    settings = recipe.optimization
    size = 4 if shapes.zero else shapes.held
    largest = shapes.largest_step / size
    match settings.optimizer:
        case "lion":
            bytes_of_it = 2 * size * largest
        case "adafactor":
            bytes_of_it = 2 * 4 * largest
        case "adamw-8bit":
            bytes_of_it = 0 if on_gpu and recipe.engine.offload == "none" else 5 * 4 * largest
        case "muon":
            groups = [group for group in parameter_groups(model, settings) if group.inner]
            inner = [p.numel() for group in groups for p in group.parameters]
            bytes_of_it = (size + 8 * 2) * max(inner, default=0)
        case _:
            bytes_of_it = 0
    return Part(_ARITHMETIC, bytes_of_it, ("step",))


def state_name(optimizer: str) -> str:
    """What an optimizer keeps, in the table of memory."""
    return "AdamW's moments" if optimizer == "adamw" else f"state of {optimizer}"


def _state_of_a_weight(
    model: PreTrainedModel, settings: Optimization, size: int, flat: bool
) -> float:
    """Bytes, in the mean over the weights that are trained."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return state_bytes(model, settings, size, flat) / trained


def _deepspeed(shapes: Shapes, recipe: TrainRecipe, on_gpu: bool) -> list[Part]:
    settings = {**_ZERO_DEFAULTS, **recipe.engine.deepspeed.get("zero_optimization", {})}
    bucket = settings["reduce_bucket_size"]
    if not on_gpu:  # memory that is never written to is not taken
        bucket = min(bucket, shapes.weights)
    during: tuple[str, ...] = ("loss", "backward") if on_gpu else ("backward",)
    if shapes.zero == 3:
        during = TRAINING  # one for all steps
    twice = 2 if settings.get("overlap_comm", on_gpu) and shapes.zero < 3 else 1
    copied = shapes.share
    if shapes.zero == 3:
        copied = min(shapes.share, settings["sub_group_size"])
    parts = [
        Part("buckets of gradients", shapes.held * bucket * twice, during),
        Part("fp32 copy of the gradients", 4 * copied, ("step",)),
    ]
    if shapes.zero == 3:
        live = min(settings["stage3_max_live_parameters"], shapes.weights)
        gathered = shapes.held * live
        parts.append(Part("weights gathered from all ranks", gathered, (*PASS, "watch")))
    return parts


def _gathered(shapes: Shapes, model: PreTrainedModel) -> Part:
    """FSDP2 keeps what lies outside the blocks gathered, and one block beside the next.

    In the backward pass the gradients of a block are whole before they are split.
    """
    sizes = [sum(p.numel() for p in block.parameters()) for _, block in decoder_blocks(model)]
    gathered = shapes.weights - sum(sizes) + 3 * max(sizes)
    return Part(
        "weights gathered from all ranks",
        shapes.computed * gathered,
        (*PASS, "watch"),
    )


def _region(shapes: Shapes, recipe: TrainRecipe, region: Region, on_gpu: bool) -> list[Part]:
    """What a freeze keeps: entries to mask gradients with, entries and values to guard masters."""
    device = "cuda" if on_gpu else "cpu"
    # A CPU's are those of the region as it was loaded, but for bits, which become indices.
    kept = [entries for entries in region.values() if on_gpu or entries.kind == "bits"]
    whole = sum(entries.nbytes_for_training(device) for entries in kept)
    share = 4 * region.count / shapes.world
    if shapes.zero:  # gradients are masked whole; masters, and at stage 3 weights, are split
        entries = whole + share
        held = 4 * region.count / shapes.world
    elif shapes.kind == "fsdp2":
        entries, held = share, shapes.held * region.count / shapes.world
    else:
        entries, held = whole, shapes.held * region.count
    audited = held if recipe.freeze.audit_every else 0
    return [
        Part("region: entries", entries),
        Part("region: values, and gradients when audited", held + audited, ("step",)),
        Part("region: as it was loaded, and values of the start", 0, host=region.nbytes + audited),
    ]


def _pull(
    shapes: Shapes, pull: Pull, regions: Sequence[Region], stored: torch.dtype, on_gpu: bool
) -> list[Part]:
    """The base's values beside what the rank's optimizer steps, and what a pass over them takes."""
    split = shapes.zero or shapes.kind == "fsdp2"
    stepped = shapes.share if split else shapes.weights
    base = stored.itemsize * stepped
    device = "cuda" if on_gpu else "cpu"
    # On a CPU those of a region as it was loaded, but for bits, and for shards.
    kept = [e for r in regions for e in r.values() if on_gpu or split or e.kind == "bits"]
    entries = sum(e.nbytes_for_training(device) for e in kept) / (shapes.world if split else 1)
    factors = 0 if pull.fisher is None else 4 * stepped
    at_once = min(AT_ONCE, shapes.largest)
    # What is new in fp32: the result, the base and the weights unless they are, shares.
    copies = 1 + (stored.itemsize < 4 or (pull.on_cpu and on_gpu))
    copies += (shapes.held < 4 and not shapes.zero) + (pull.fisher is not None)
    return [
        Part("pull: the base", 0 if pull.on_cpu else base, host=base if pull.on_cpu else 0),
        Part("pull: regions' entries, and factors", entries + factors),
        Part("pull: regions as they were loaded", 0, host=sum(r.nbytes for r in regions)),
        Part("pull: arithmetic", 4 * copies * at_once, ("step",)),
        Part("pull: distances", 3 * 8 * at_once, ("watch",)),  # the step is over then
    ]


def _offloaded(part: Part, what: str, state: str) -> Part:
    """In CPU memory instead, if that is what ``engine.offload`` moves there."""
    moved = {"fp32 masters", state, _ARITHMETIC, "fp32 copy of the gradients"}
    if part.name.startswith("pull: "):  # it is where the masters are
        return replace(part, device=0, host=part.device + part.host)
    if what == "all":
        moved.add("weights")
    if part.name not in moved:
        return part
    return replace(part, device=0, host=part.device, during=TRAINING)
