"""Where the largest (smallest) of more values end than memory holds: a radix selection.

Every value is read twice, to count the high and then the low 16 bits of it; with the counts, the
place of the limit among all values is exact, ties included.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

Which = Literal["top", "bottom"]

_CHUNK = 1 << 20  # values that are counted at a time


class Threshold:
    """Takes the ``count`` largest (smallest) of several arrays, ties to the earlier one.

    Args:
        reads: give each an fp32 array [N] without NaN, which is dropped before the next is read,
            and the same array whenever called.
        count: how many to take, at most as many as there are.
    """

    def __init__(self, reads: Sequence[Callable[[], np.ndarray]], count: int, which: Which) -> None:
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


def _count(reads: Sequence[Callable[[], np.ndarray]], which: Which, high: int | None) -> np.ndarray:
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
