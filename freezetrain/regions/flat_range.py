"""The part of a set of entries that lies in a range of the flattened tensor, as shards do."""

from math import prod

import torch

from freezetrain.regions.entries import Entries


def narrow(entries: Entries, start: int, length: int) -> Entries:
    """The entries among the ``length`` flat ones from ``start`` on, as a set of shape [length]."""
    if entries.data is None:
        return Entries.whole((length,))
    if entries.kind == "rows":  # of the rows that the range touches: the tensor may be large
        width = prod(entries.shape[1:])
        first, last = start // width, -(-(start + length) // width)
        held = torch.zeros(last - first, dtype=torch.bool)
        rows = entries.data.cpu().long()
        held[rows[(rows >= first) & (rows < last)] - first] = True
        offset = start - first * width
        return Entries.from_mask(held.repeat_interleave(width)[offset : offset + length])
    if entries.kind != "indices":
        return Entries.from_mask(entries.mask().flatten()[start : start + length])
    index = entries.indices()
    bounds = torch.tensor([start, start + length], device=index.device)
    first, last = torch.searchsorted(index, bounds).tolist()
    return Entries.from_indices((length,), index[first:last] - start)


def count_before(entries: Entries, stop: int) -> int:
    """How many of the entries lie among the first ``stop`` flat ones."""
    if entries.data is None:
        return stop
    if entries.kind == "bits":
        return int(entries.mask().flatten()[:stop].count_nonzero())
    index = entries.data.long()
    if entries.kind == "indices":
        return int((index < stop).count_nonzero())
    width = prod(entries.shape[1:]) if entries.kind == "rows" else entries.shape[-1]
    row, rest = divmod(stop, width)
    if entries.kind == "columns":
        return row * len(index) + int((index < rest).count_nonzero())
    return int((index < row).count_nonzero()) * width + rest * int((index == row).any())
