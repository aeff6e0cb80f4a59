"""Rules by which :class:`~freezetrain.regions.entries.Entries` finds the one form of a set."""

from collections.abc import Sequence
from math import prod
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from freezetrain.errors import UserError

INT32_MAX = 2**31 - 1


def fit_as_indices(shape: tuple[int, ...], count: int) -> bool:
    """Whether ``count`` indices are allowed, and not larger than bits."""
    numel = prod(shape)
    return numel <= INT32_MAX and 4 * count <= bits_nbytes(numel)


def quick_as_indices(shape: tuple[int, ...], count: int, device: torch.device | str) -> bool:
    """Whether a set kept as bits is read and written as indices while training on ``device``.

    On a CPU always, where that is many times faster; on others while bits save little memory.
    """
    numel, on_cpu = prod(shape), torch.device(device).type == "cpu"
    return numel <= INT32_MAX and (on_cpu or 8 * count <= numel)


def may_be_slices(shape: tuple[int, ...], count: int) -> bool:
    """Whether ``count`` entries can make up whole rows or whole columns."""
    numel = prod(shape)
    return len(shape) >= 2 and any(count % (numel // size) == 0 for size in (shape[0], shape[-1]))


def candidate_slices(mask: Tensor, count: int) -> list[tuple[Literal["rows", "columns"], Tensor]]:
    """For rows and for columns, which of them are wholly in ``mask``; none where pointless."""
    if not may_be_slices(tuple(mask.shape), count):
        return []
    return [("rows", mask.flatten(1).all(1)), ("columns", mask.flatten(0, -2).all(0))]


def sliceable(shape: Sequence[int], what: str) -> tuple[int, ...]:
    """``shape`` as a tuple; UserError unless it has ``what``, rows or columns."""
    if len(shape) < 2:
        raise UserError(f"{what} need a tensor of 2 dimensions or more, got shape {list(shape)}")
    return tuple(shape)


def sorted_unique(values: Tensor | Sequence[int], limit: int, what: str) -> Tensor:
    """``values`` as a sorted int64 tensor; UserError unless unique integers in [0, limit)."""
    index = torch.as_tensor(values)
    if index.numel() == 0:
        return torch.zeros(0, dtype=torch.int64)
    if index.ndim != 1 or index.dtype.is_floating_point or index.dtype == torch.bool:
        raise UserError(
            f"expected one dimension of integers as {what}, "
            f"got shape {list(index.shape)} of dtype {index.dtype}"
        )
    index = index.to(torch.int64)
    if not bool((index[1:] > index[:-1]).all()):  # sorting takes long also where all is sorted
        index = index.sort().values
    first, last = int(index[0]), int(index[-1])
    if first < 0 or last >= limit:
        offender = first if first < 0 else last
        raise UserError(f"{what} must lie in 0 to {limit - 1}, got {offender}")
    repeated = index[1:][index[1:] == index[:-1]]
    if len(repeated):
        raise UserError(f"{what} must not repeat, got {int(repeated[0])} more than once")
    return index


def bits_nbytes(numel: int) -> int:
    """Bytes that ``numel`` entries take as bits."""
    return (numel + 7) // 8


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a bool mask of any shape into uint8 [ceil(numel / 8)], on the CPU.

    Entry ``i`` of the flattened mask is bit ``i % 8`` of byte ``i // 8``; spare bits are zero.
    """
    return torch.from_numpy(np.packbits(mask.flatten().cpu().numpy(), bitorder="little"))


def unpack_bits(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo :func:`pack_bits`: a bool mask of ``shape``, on the device of ``bits``."""
    numel = prod(shape)
    if bits.device.type == "cpu":
        unpacked = np.unpackbits(bits.numpy(), count=numel, bitorder="little")
        return torch.from_numpy(unpacked).view(torch.bool).view(shape)
    # Made there: a constant of the host's would have each call wait for its copy.
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    mask = ((bits.unsqueeze(1) >> places) & 1).bool().flatten()
    return mask[:numel].view(shape)
