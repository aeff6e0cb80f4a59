"""A bool mask as one bit an entry, in the order of ``numpy.packbits(bitorder="little")``."""

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
    places = torch.tensor([1 << place for place in range(8)], dtype=torch.uint8, device=bits.device)
    mask = (bits.unsqueeze(1) & places).bool().flatten()
    return mask[: torch.Size(shape).numel()].view(shape)
