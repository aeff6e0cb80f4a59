"""Logits of some places at a time."""

import os
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from freezetrain.head.find import Head

# The share of a device's memory that the logits of a chunk take, in fp32, and its bounds in bytes.
# The gradient of the weights is gone through once a chunk, which takes the less time beside the
# products the more places a chunk has: of 262,144 tokens on a CPU 14% of whole logits' time with
# 94 places, 3% with 241 (benchmarks/head.py).
_SHARE, _LEAST, _MOST = 1 / 100, 1 << 25, 320_000_000


def places_at_once(vocabulary: int, device: torch.device) -> int:
    """Places of which logits of ``vocabulary`` tokens are held at a time on ``device``.

    The same for a machine each time, as rounding depends on it.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        return max(1, _MOST // (4 * vocabulary))  # of a GPU elsewhere
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    held = min(max(int(memory * _SHARE), _LEAST), _MOST)
    return max(1, held // (4 * vocabulary))


def computed_dtype(weight: Tensor) -> torch.dtype:
    """What a linear layer of ``weight`` is computed in: under autocast another."""
    device = weight.device.type
    if torch.is_autocast_enabled(device) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return weight.dtype


def parts_of(count: int, at_once: int) -> Iterator[slice]:
    """0 to ``count`` in slices of ``at_once`` or fewer."""
    return (slice(first, min(first + at_once, count)) for first in range(0, count, at_once))


@torch.no_grad()
def chunks_of_logits(hidden: Tensor, head: Head) -> Iterator[tuple[slice, Tensor]]:
    """Places and their logits [p, V], fp32 (fp64 where the weights are), for ``hidden`` [P, H].

    Logits are written over by those of the next places. No gradients.
    """
    layer = head.module
    dtype = computed_dtype(layer.weight)
    weight, bias = layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype)
    at_once = places_at_once(head.vocabulary, hidden.device)
    wide = torch.promote_types(dtype, torch.float32)
    buffer = hidden.new_empty((min(at_once, len(hidden)), head.vocabulary), dtype=wide)
    for part in parts_of(len(hidden), at_once):
        yield part, head.finish_(linear(hidden[part].to(dtype), weight, bias, buffer))


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, buffer: Tensor) -> Tensor:
    """The layer's outputs [p, V] in the first rows of ``buffer`` [at least p, V], fp32 or wider."""
    outputs = buffer[: len(hidden)]
    with torch.autocast(hidden.device.type, enabled=False):
        if weight.dtype != buffer.dtype:
            return outputs.copy_(F.linear(hidden, weight, bias))
        if bias is None:
            return torch.mm(hidden, weight.t(), out=outputs)
        return torch.addmm(bias, hidden, weight.t(), out=outputs)
