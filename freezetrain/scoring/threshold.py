"""Where the largest (smallest) of more values end than memory holds.

A few of many: a sample tells a bound that somewhat more values than wanted reach; in one pass those
are found, and the wanted ones, exactly, among them. Else a radix selection: every value is read
twice, to count the high and then the low 16 bits of it; with the counts, the place of the limit
among all values is exact, ties included.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

Which = Literal["top", "bottom"]

Read = Callable[[], np.ndarray]
"""Gives an fp32 array [N] without NaN, the same whenever called."""

_CHUNK = 1 << 20  # values that are counted at a time

_SCANNED = 1 << 18  # values that are compared at a time, so that the outcome stays in the cache

_SAMPLE = 1 << 14  # values of which a bound is told

_MARGIN = 4.0  # standard deviations by which more of a sample than wanted shall reach the bound


def few_of_many(
    reads: Sequence[Read], sizes: Sequence[int], count: int, which: Which
) -> list[np.ndarray] | None:
    """Of each array the sorted int64 indices of its values among the ``count`` largest (smallest).

    What :class:`Threshold` takes of all arrays, which have ``sizes``, ties to the earlier one, but
    in less time. None where too many are wanted for that, or too many values are equal. Each array
    is read twice, and dropped before the next is read; memory: 12 bytes for each of somewhat more
    values than ``count``.
    """
    total = sum(sizes)
    # Of several arrays, no more may be held than a few times what their region takes as indices.
    if count == 0 or count * (4 if len(sizes) == 1 else 32) > total or total < 4 * _SAMPLE:
        return None
    samples = [_sample(read(), size, total) for read, size in zip(reads, sizes, strict=True)]
    bound = _bound(np.concatenate(samples), count / total, which)
    held, found = [], 0
    for read in reads:
        held.append(_reaching(read(), bound, which))
        found += len(held[-1][0])
        if found > 4 * (count + _SAMPLE):
            return None
    if found < count:
        return None
    values = np.concatenate([values for _, values in held])
    place = found - count if which == "top" else count - 1
    limit = np.partition(values, place)[place]
    taken = values > limit if which == "top" else values < limit
    taken[np.flatnonzero(values == limit)[: count - int(taken.sum())]] = True
    ends = np.cumsum([len(index) for index, _ in held])[:-1]
    parts = np.split(taken, ends)
    return [index[part] for (index, _), part in zip(held, parts, strict=True)]


class Threshold:
    """Takes the ``count`` largest (smallest) of several arrays, ties to the earlier one.

    Args:
        reads: of each array, which is dropped before the next is read.
        count: how many to take, at most as many as there are.
    """

    def __init__(self, reads: Sequence[Read], count: int, which: Which) -> None:
        self._which = which
        self._limit = np.float32(np.inf if which == "top" else -np.inf)
        self._ties = 0  # of those equal to the limit, how many are still to be taken
        if count:
            high, before = _place(_count(reads, which, high=None), count)
            low, before = _place(_count(reads, which, high=high), count - before, before)
            self._limit = _value(high << 16 | low, which)
            self._ties = count - before

    def take(self, values: np.ndarray) -> np.ndarray:
        """Bool [N]: which of the next array's values are taken; call it once for each, in order."""
        beyond = values > self._limit if self._which == "top" else values < self._limit
        if self._ties:
            ties = np.flatnonzero(values == self._limit)[: self._ties]
            beyond[ties] = True
            self._ties -= len(ties)
        return beyond


def _count(reads: Sequence[Read], which: Which, high: int | None) -> np.ndarray:
    """Int64 [65536]: keys by their high 16 bits; given these, by the low ones of those keys."""
    counts = np.zeros(1 << 16, dtype=np.int64)
    for read in reads:
        _add(counts, read(), which, high)  # no name here would hold the array for the next
    return counts


def _add(counts: np.ndarray, values: np.ndarray, which: Which, high: int | None) -> None:
    for start in range(0, len(values), _CHUNK):
        keys = _keys(values[start : start + _CHUNK], which)
        part = keys >> 16 if high is None else keys[keys >> 16 == high] & 0xFFFF
        counts += np.bincount(part, minlength=len(counts))


def _keys(values: np.ndarray, which: Which) -> np.ndarray:
    """Uint32 in the order in which values are taken: equal values have equal keys."""
    zero = np.float32(0)
    bits = (zero - values if which == "top" else zero + values).view(np.uint32)  # no -0.0 is left
    # Of negative floats, the larger bits mean the smaller value.
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _value(key: int, which: Which) -> np.float32:
    """Undo :func:`_keys`."""
    bits = key ^ (1 << 31) if key >> 31 else ~key & 0xFFFFFFFF
    value = np.uint32(bits).view(np.float32)
    return np.float32(-value if which == "top" else value)


def _place(counts: np.ndarray, rank: int, before: int = 0) -> tuple[int, int]:
    """The part in which the ``rank``-th key, from 1, lies; and how many come before that part.

    ``before`` is how many come before all that ``counts`` counts.
    """
    total = np.cumsum(counts)
    part = int(np.searchsorted(total, rank))
    return part, before + int(total[part] - counts[part])


def _sample(values: np.ndarray, size: int, total: int) -> np.ndarray:
    """An array's share of the sample, from places that no period of rows or columns fits.

    Multiples of the golden ratio, modulo 1, lie evenly.
    """
    count = -(-_SAMPLE * size // total)
    places = np.arange(1, count + 1) * ((5**0.5 - 1) / 2) % 1
    return values[(places * size).astype(np.int64)]


def _bound(sample: np.ndarray, share: float, which: Which) -> np.float32:
    """A value that probably at least ``share`` of all values reach, and not many more."""
    expected = share * len(sample)
    rank = min(int(expected + _MARGIN * expected**0.5) + 1, len(sample) - 1)
    place = len(sample) - 1 - rank if which == "top" else rank
    return np.float32(np.partition(sample, place)[place])


def _reaching(values: np.ndarray, bound: np.float32, which: Which) -> tuple[np.ndarray, np.ndarray]:
    """Sorted int64 indices of the values that reach the bound, and these values."""
    indices, reached = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.float32)]
    compare = np.greater_equal if which == "top" else np.less_equal
    reaches = np.zeros(_SCANNED, dtype=bool)
    for start in range(0, len(values), _SCANNED):
        part = values[start : start + _SCANNED]
        reaches[len(part) :] = False
        compare(part, bound, out=reaches[: len(part)])
        # Eight at a time first, as most do not reach it.
        eights = reaches.view(np.uint64)
        some = np.flatnonzero(eights != 0)
        places = np.flatnonzero(eights[some].view(bool))
        places = 8 * some[places >> 3] + (places & 7)
        indices.append(places + start)
        reached.append(part[places])
    return np.concatenate(indices), np.concatenate(reached)
