"""A bool mask as one bit an entry, in the order of ``numpy.packbits(bitorder="little")``."""

from math import prod

import numpy as np
import torch
from torch import Tensor


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
