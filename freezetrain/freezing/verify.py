"""Proof that nothing moved: two sets of weights compared bit for bit, inside a region and out."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from freezetrain.errors import UserError, near_misses
from freezetrain.freezing.weights_folder import WeightsFolder, is_computed
from freezetrain.regions import Entries, Region

_SIXTEEN_BITS = ("bfloat16", "float16")

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Offender:
    """A frozen entry that moved."""

    name: str
    """Parameter."""
    index: int
    """Index into the flattened parameter."""
    base: float
    adapted: float


@dataclass(frozen=True)
class Comparison:
    """What became of a region's entries, and of all others, from base to adapted."""

    checked: int
    """Frozen entries compared; a tied parameter counts once."""
    moved: int
    """Frozen entries that are not bit-identical."""
    rounded_to: str | None
    """bfloat16 or float16 if all that moved have the base's values rounded to it."""
    offenders: list[Offender]
    """The first of those, by parameter in the base's order, then by index."""
    trainable: int
    """Entries outside the region."""
    changed: int
    """Trainable entries that are not bit-identical; 0 means that nothing was trained."""
    left_out: list[str]
    """Tensors that are no parameters, or not the model's, and were not compared."""


def compare_checkpoints(
    base: str | Path,
    adapted: str | Path,
    region: Region,
    first: int = 10,
    *,
    clamp: float | None = None,
    rounded_to: str | None = None,
    left_out: Collection[str] = (),
) -> Comparison:
    """Compare two Hugging Face model folders, streaming one tensor of each at a time.

    Entries are compared bit for bit, so that -0.0 is not 0.0 and NaN is itself. Where the dtypes
    differ both are widened first (bfloat16 and float16 to float32), which is exact: a base in
    bfloat16 and an adapted model in float32 compare by value. Up to ``first`` offenders are kept.

    ``clamp``: the value that frozen entries were set to, instead of the base's. ``rounded_to``:
    bfloat16 or float16, to compare with the base's frozen values rounded to it, as an engine
    rounds them that trains in 16 bits; else such entries count as moved.

    Raises UserError for folders without weights, quantized weights, tensors that only one side has,
    other shapes, and names of the region that are not in the files. Tied weights may be named
    either way. Some models are stored under other names than they have in memory (fused experts);
    load both and use :func:`compare_weights` then. ``left_out``: as there.
    """
    weights = WeightsFolder.plain(base), WeightsFolder.plain(adapted)
    return compare_weights(
        *weights, region, first, clamp=clamp, rounded_to=rounded_to, left_out=left_out
    )


def compare_weights(
    base: Mapping[str, Tensor],
    adapted: Mapping[str, Tensor],
    region: Region,
    first: int = 10,
    *,
    clamp: float | None = None,
    rounded_to: str | None = None,
    left_out: Collection[str] = (),
) -> Comparison:
    """As :func:`compare_checkpoints` for parameter name -> tensor, as in ``named_parameters()``.

    A ``state_dict()`` does as well. What is no parameter in it is left out: tensors that are not of
    floating point, masks and tables that a model computes (rotary frequencies), by their names, and
    those of ``left_out``.
    """
    entries = _by_stored_name(region, base, adapted)
    out: list[str] = []
    checked = moved = trainable = changed = 0
    rounded = dict.fromkeys(_SIXTEEN_BITS, 0)  # frozen entries that moved by rounding alone
    offenders: list[Offender] = []
    for name in dict.fromkeys([*base, *adapted]):
        if name not in entries and (name in left_out or _is_no_parameter(name, base, adapted)):
            out.append(name)
            continue
        before, after = _look_up(base, name, adapted), _look_up(adapted, name, base)
        if before.shape != after.shape:
            raise UserError(
                f"{name!r} has shape {list(before.shape)} in the base and {list(after.shape)} in "
                "the adapted model: expected two models of one architecture and vocabulary"
            )
        frozen = entries.pop(name, None) or Entries.empty(before.shape)
        if frozen.shape != before.shape:
            raise UserError(
                f"the region has {name!r} of shape {list(frozen.shape)}, the models of shape "
                f"{list(before.shape)}: pass the region that was frozen"
            )
        if clamp is not None:
            # In the adapted model's dtype, in which it was set: a base may be stored in another.
            wider = torch.promote_types(before.dtype, after.dtype)
            value = torch.tensor(clamp, dtype=torch.float64).to(after.dtype)
            if not value.isfinite():
                raise UserError(
                    f"clamp is {clamp:g}, which no entry of {name!r} can be, as the adapted model "
                    f"holds it in {after.dtype}; give the value that the region was set to"
                )
            before = torch.where(frozen.mask(), value.to(wider), before.to(wider))
        if rounded_to is not None:
            before = torch.where(frozen.mask(), _rounded(before, rounded_to), before)
        differs = _differ(name, before, after)
        here = differs & frozen.mask()
        checked += frozen.count
        trainable += frozen.numel - frozen.count
        moved_here = int(here.count_nonzero())
        moved += moved_here
        if moved_here:
            for dtype in rounded:
                off = here & _differ(name, _rounded(before, dtype), after)
                rounded[dtype] += moved_here - int(off.count_nonzero())
        changed += int(differs.count_nonzero()) - moved_here
        if moved_here and len(offenders) < first:
            for index in here.flatten().nonzero().flatten()[: first - len(offenders)].tolist():
                values = before.flatten()[index].item(), after.flatten()[index].item()
                offenders.append(Offender(name, index, *values))
    explains = [dtype for dtype, count in rounded.items() if moved and count == moved]
    rounds = explains[0] if explains else None
    return Comparison(checked, moved, rounds, offenders, trainable, changed, out)


def _is_no_parameter(name: str, base: Mapping[str, Tensor], adapted: Mapping[str, Tensor]) -> bool:
    """By its name and type in the weights that have it."""
    here = base if name in base else adapted
    if isinstance(here, WeightsFolder):
        header = here.headers[name]
        return header.is_integer or is_computed(name, header.shape)
    tensor = here[name]
    return not tensor.is_floating_point() or is_computed(name, tuple(tensor.shape))


def _rounded(tensor: Tensor, dtype: str) -> Tensor:
    """The values of ``tensor`` rounded to ``dtype``, held in its own."""
    if dtype not in _SIXTEEN_BITS:
        raise UserError(f"rounded_to must be one of {', '.join(_SIXTEEN_BITS)}, got {dtype!r}")
    return (
        tensor.to(getattr(torch, dtype)).to(tensor.dtype) if tensor.is_floating_point() else tensor
    )


def _by_stored_name(
    region: Region, base: Mapping[str, Tensor], adapted: Mapping[str, Tensor]
) -> dict[str, Entries]:
    """The region's entries by a name that the weights have, two names of one tensor united."""
    entries: dict[str, Entries] = {}
    for name, here in region.items():
        stored = name
        if name not in base and name not in adapted:
            stored = _stored_name(base, name, here.shape)
        known = entries.get(stored)
        entries[stored] = here if known is None else known | here
    return entries


def _stored_name(weights: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> str:
    if isinstance(weights, WeightsFolder):
        return weights.stored_name(name, shape)
    if name not in weights:
        raise UserError(f"the weights hold no {name!r}{near_misses(name, weights)}")
    return name


def _look_up(weights: Mapping[str, Tensor], name: str, other: Mapping[str, Tensor]) -> Tensor:
    """Tensor ``name``, which one of the two has; the other may hold it tied to another."""
    if name in weights:
        return weights[name]
    return weights[_stored_name(weights, name, tuple(other[name].shape))]


def _differ(name: str, before: Tensor, after: Tensor) -> Tensor:
    """Where the bits differ: bool, of the tensors' shape."""
    if before.dtype != after.dtype:
        if not (before.is_floating_point() and after.is_floating_point()):
            raise UserError(
                f"{name!r} is {before.dtype} in one model and {after.dtype} in the other"
            )
        wider = torch.promote_types(before.dtype, after.dtype)
        before, after = before.to(wider), after.to(wider)
    integers = _INTEGERS[before.element_size()]
    return before.contiguous().view(integers) != after.contiguous().view(integers)
