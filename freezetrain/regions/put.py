"""Writing single entries of a tensor in place, each by the operation that is quickest there."""

import torch
from torch import Tensor

ONE_THREAD = 32_768
"""Entries below which index_fill_ and index_copy_ stay on one thread of a CPU: torch's usual grain.
index_put_ has threads share the waiting for memory from 3,000 on (``cpu_index_kernel``)."""


def put(tensor: Tensor, index: Tensor, values: Tensor | float) -> None:
    """Write ``values``, [count] or one number, to ``index`` [count] of the flattened ``tensor``.

    ``index`` is int64 and unique, on the device of ``tensor``, which may have any strides.
    """
    if not tensor.is_contiguous():
        where, target = torch.unravel_index(index, tensor.shape), tensor
    elif tensor.device.type == "cpu" and len(index) < ONE_THREAD:
        where, target = (index,), tensor.view(-1)
    elif isinstance(values, Tensor):
        tensor.view(-1).index_copy_(0, index, values)
        return
    else:
        tensor.view(-1).index_fill_(0, index, values)
        return
    target.index_put_(where, values if isinstance(values, Tensor) else tensor.new_full((), values))
