"""Random entries, the same on every machine."""

import hashlib

import torch
from torch import Tensor


def draw_indices(numel: int, count: int, seed: int, name: str) -> Tensor:
    """``count`` of the flat indices 0 to numel - 1, uniformly without replacement, int64, sorted.

    The draw depends on ``seed`` and the parameter's ``name`` alone, not on what is drawn for
    other parameters. Memory grows with ``count``, not with ``numel``, below one half.
    """
    generator = generator_of(seed, name)
    if count <= numel // 2:
        return _draw(numel, count, generator)
    kept = torch.ones(numel, dtype=torch.bool)
    return kept.index_fill_(0, _draw(numel, numel - count, generator), False).nonzero().flatten()


def generator_of(seed: int, name: str) -> torch.Generator:
    """Random numbers on the CPU for the parameter ``name``, others for every seed and name."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _draw(numel: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw again for each repeated index: by symmetry every subset is equally likely."""
    drawn = torch.zeros(0, dtype=torch.int64)
    while len(drawn) < count:
        # Draws below 2^62 because torch's own reduction to a smaller range is visibly biased.
        more = torch.randint(2**62, (count - len(drawn),), generator=generator) % numel
        drawn = torch.cat([drawn, more]).unique()
    return drawn
