"""What all ranks must agree on: rank 0 says it."""

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def is_first_rank() -> bool:
    """Whether this process is rank 0, or the only one."""
    return not _several() or dist.get_rank() == 0


def from_first_rank(value: T) -> T:
    """Rank 0's ``value``; every rank must call this. ``value`` itself without other ranks."""
    if not _several():
        return value
    held = [value]
    dist.broadcast_object_list(held)
    return held[0]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
