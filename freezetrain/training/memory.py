"""How much memory a rank takes, estimated from shapes before a run is started.

What each engine keeps was read in its code (PyTorch 2.13: DistributedDataParallel, fully_shard,
AdamW; DeepSpeed 0.19.8: runtime/zero/stage_1_and_2.py, stage3.py, config.py; Lightning 2.6.6:
plugins/precision), and for freezing in freezetrain.freezing; benchmarks/memory.py compares
with real runs. Not in it: CUDA's context, kernels' workspaces, and what the allocator leaves unused
between blocks.
"""

import math
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
from freezetrain.rehearsal.targets import places_at_once
from freezetrain.training.activations import count_activations
from freezetrain.training.engines import kind_of, trained_in_16_bits
from freezetrain.training.recipe import Pull, Rehearse, TrainRecipe

# DeepSpeed's defaults, in elements.
_ZERO_DEFAULTS = {
    "reduce_bucket_size": 5e8,
    "stage3_max_live_parameters": 1e9,
    "sub_group_size": 1e9,
}

# Moments of a run in which different parts are there. The peak is the largest of their sums.
ALWAYS = ("load", "forward", "loss", "backward", "step", "watch")

TRAINING = ALWAYS[1:]

_PASS = ("forward", "loss", "backward")


@dataclass(frozen=True)
class Part:
    """Bytes that a rank takes for one purpose."""

    name: str
    device: float
    """On the GPU; without GPUs, in the memory that it would have."""
    during: tuple[str, ...] = TRAINING
    host: float = 0
    """In CPU memory, beside a GPU."""


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
    shapes = _Shapes(model, recipe, world)
    parts = [*_state(shapes, recipe), *_batch(shapes, model, recipe)]
    if recipe.rehearse is not None and recipe.rehearse.loss == "kl":
        parts += _rehearsal(shapes, model, recipe.optimization, recipe.rehearse)
    if shapes.zero:
        parts += _deepspeed(shapes, recipe, on_gpu)
    elif shapes.kind == "fsdp2":
        parts.append(_gathered(shapes, model))
    if not on_gpu:  # AdamW's loop makes two tensors of the size that it steps
        parts.append(Part("AdamW's arithmetic", 2 * shapes.largest_step, ("step",)))
    if region is not None:
        parts += _region(shapes, recipe, region, on_gpu)
    if recipe.pull is not None:
        parts += _pull(shapes, recipe.pull, pulled, stored or torch.float32, on_gpu)
    if recipe.engine.offload != "none":
        parts = [_offloaded(part, recipe.engine.offload) for part in parts]
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
    if torch.cuda.is_available():
        there = torch.cuda.get_device_properties(0).total_memory
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise UserError(
            f"{name} is {sequences}, of which the hidden states alone take {readable(needed)}, and "
            f"there are {readable(there)} of memory; lower it"
        )


class _Shapes:
    """Sizes that follow from the engine."""

    def __init__(self, model: PreTrainedModel, recipe: TrainRecipe, world: int) -> None:
        self.world = world
        self.kind = kind_of(recipe.engine, world)
        self.zero = int(self.kind[-1]) if self.kind.startswith("zero") else 0
        settings = recipe.optimization
        self.accumulates = settings.accumulate(world) > 1
        self.in_16_bits = trained_in_16_bits(settings)
        parameters = list(model.parameters())
        self.weights = sum(p.numel() for p in parameters)
        stored = max(p.element_size() for p in parameters)
        self.loaded = stored
        if self.zero:
            self.held = 2 if self.in_16_bits else 4
        else:
            self.held = 2 if settings.precision == "bf16-true" else stored
        """Bytes of a weight."""
        self.split = self.kind == "fsdp2" or self.zero == 3
        self.share = sum(-(-p.shape[0] // world) * p[0].numel() for p in parameters)
        """Weights of the largest shard: FSDP2 splits rows, DeepSpeed flat tensors."""
        if self.zero:
            self.share = -(-self.weights // world)
        self.local = self.share if self.split else self.weights
        whole = [p.numel() for p in parameters if p.requires_grad]
        self.trained = self.local if self.zero or self.split else sum(whole)
        """Weights on a rank that have a gradient; engines that split them train all."""
        largest: float = max(whole) * self.held
        if self.kind == "fsdp2":
            largest /= world
        self.largest_step = 4 * self.share if self.zero else largest
        """Bytes of the largest tensor that AdamW steps on a rank."""
        self.largest = max(whole)
        if self.zero or self.kind == "fsdp2":
            self.largest = (
                -(-self.largest // world) if self.split else min(self.largest, self.share)
            )
        """Weights of the largest parameter, as far as one rank steps them."""

    @property
    def autocast(self) -> bool:
        """Whether weights are fp32 and cast in each forward pass."""
        return self.in_16_bits and not self.zero and self.kind != "fsdp2" and self.held == 4

    @property
    def computed(self) -> int:
        """Bytes of a weight in a product."""
        return 2 if self.in_16_bits else self.held


def _state(shapes: _Shapes, recipe: TrainRecipe) -> list[Part]:
    """What a rank holds from step to step."""
    zero, held = shapes.zero, shapes.held
    loading = 0 if shapes.split else shapes.loaded * shapes.weights
    parts = [
        Part("weights", held * shapes.local, ALWAYS),
        Part("the model, while it is loaded", 0, ("load",), host=loading),
    ]
    gradients = held * (shapes.weights if zero == 1 else shapes.trained)
    if zero:
        parts.append(Part("fp32 masters", 4 * shapes.share))
        parts.append(Part("AdamW's moments", 8 * shapes.share))
        if zero == 2:
            gradients = held * shapes.share
    else:
        parts.append(Part("AdamW's moments", 2 * held * shapes.trained))
    during: tuple[str, ...]
    if shapes.kind == "ddp" or zero == 3:
        during = TRAINING  # DDP's buckets and ZeRO-3's buffer stay
    elif zero:
        during = ("backward", "step")
    else:  # Lightning lets go of a step's gradients before the next backward pass
        during = ("forward", "backward", "step", "watch")
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


def _batch(shapes: _Shapes, model: PreTrainedModel, recipe: TrainRecipe) -> list[Part]:
    """What a micro-batch takes, and a batch of the evaluation."""
    settings, checkpointing = recipe.optimization, recipe.engine.gradient_checkpointing
    kept = count_activations(
        model,
        settings.micro_batch,
        settings.sequence_length,
        torch.bfloat16 if shapes.computed == 2 else torch.float32,
        shapes.autocast,
    )
    rows = model.config.get_text_config().vocab_size
    # Gradients of the loss with regard to log-probabilities and logits are fp32; 16-bit logits
    # have another of their own.
    logits = settings.micro_batch * settings.sequence_length * rows
    in_16_bits = 2 if shapes.in_16_bits else 0
    blocks = kept.kept(checkpointing) - kept.outside
    parts = [
        Part("activations of the blocks", blocks, ("forward", "loss")),
        Part("activations outside of them", kept.outside, ("forward", "loss")),
        Part("logits", logits * (4 + in_16_bits), ("forward",)),
        Part("gradients of the logits", logits * (8 + in_16_bits), ("loss",)),
        Part(
            "activations of a block, in its backward pass",
            kept.block + (kept.inputs if checkpointing else 0),
            ("backward",),
        ),
    ]
    if settings.document_mask:
        parts.append(Part("document mask", _mask(settings, shapes), _PASS))
    if not recipe.watch.off:
        evaluated = recipe.watch.batch_tokens * rows * (8 + in_16_bits)
        parts.append(Part("logits of the evaluation", evaluated, ("watch",)))
    return parts


def _rehearsal(
    shapes: _Shapes, model: PreTrainedModel, settings: Optimization, rehearse: Rehearse
) -> list[Part]:
    """What KL to the base takes, of as many sequences as a micro-batch has at most."""
    vocabulary = model.config.get_text_config().vocab_size
    most = min(settings.micro_batch, math.ceil(rehearse.share * settings.micro_batch) + 1)
    compared = most * settings.sequence_length * vocabulary  # logits
    whole = settings.micro_batch * settings.sequence_length * vocabulary
    size = 2 if shapes.in_16_bits else 4
    parts = [
        Part("logits of the rehearsed places", compared * size, ("forward",)),
        Part("gradients of the logits, of KL", whole * size, ("loss",)),
    ]
    if rehearse.teacher == "stored":
        at_once = min(compared, places_at_once(vocabulary) * vocabulary)
        copies = 3 if shapes.in_16_bits else 2  # 16 bits are widened first
        return [*parts, Part("KL, some places at a time", copies * 4 * at_once, ("forward",))]
    # All logits of the base, and then log-probabilities of both and KL, of the places alone.
    largest = max(whole * size, 3 * 4 * compared)
    return [
        *parts,
        Part("the base, which is compared with", shapes.held * shapes.weights),
        Part("logits of the base, or KL", largest, ("forward",)),
    ]


def _mask(settings: Optimization, shapes: _Shapes) -> int:
    """As booleans, and as what is added to the attention's logits."""
    return settings.micro_batch * settings.sequence_length**2 * (1 + shapes.computed)


def _deepspeed(shapes: _Shapes, recipe: TrainRecipe, on_gpu: bool) -> list[Part]:
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
        parts.append(Part("weights gathered from all ranks", gathered, (*_PASS, "watch")))
    return parts


def _gathered(shapes: _Shapes, model: PreTrainedModel) -> Part:
    """FSDP2 keeps what lies outside the blocks gathered, and one block beside the next.

    In the backward pass the gradients of a block are whole before they are split.
    """
    sizes = [sum(p.numel() for p in block.parameters()) for _, block in decoder_blocks(model)]
    gathered = shapes.weights - sum(sizes) + 3 * max(sizes)
    return Part(
        "weights gathered from all ranks",
        shapes.computed * gathered,
        (*_PASS, "watch"),
    )


def _region(shapes: _Shapes, recipe: TrainRecipe, region: Region, on_gpu: bool) -> list[Part]:
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
    shapes: _Shapes, pull: Pull, regions: Sequence[Region], stored: torch.dtype, on_gpu: bool
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


def _offloaded(part: Part, what: str) -> Part:
    """In CPU memory instead, if that is what ``engine.offload`` moves there."""
    moved = {"fp32 masters", "AdamW's moments", "fp32 copy of the gradients"}
    if part.name.startswith("pull: "):  # it is where the masters are
        return replace(part, device=0, host=part.device + part.host)
    if what == "all":
        moved.add("weights")
    if part.name not in moved:
        return part
    return replace(part, device=0, host=part.device, during=TRAINING)
