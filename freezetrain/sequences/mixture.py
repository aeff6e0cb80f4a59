"""Which pool of sequences each place of a run draws from, so that shares hold at every place."""

import numpy as np

_BLOCK = 1024  # places that are laid out together
_BITS = 62  # of a fixed-point number in [0, 1]: the same on every machine
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # (√5 - 1)/2 as a fraction of 2**64


def _weyl(numbers: np.ndarray, seed: np.uint64) -> np.ndarray:
    """Points of the golden-ratio sequence, which fill [0, 1) as evenly as can be; 62 bits."""
    return ((numbers.astype(np.uint64) * _GOLDEN + seed) >> np.uint64(64 - _BITS)).astype(np.int64)


class Mixture:
    """Places 0 to ``length`` of which pool ``j`` gets the share ``shares[j]``; shares sum to 1.

    Each block of 1024 places takes 1024 points spread evenly over [0, 1), and a pool gets those in
    its part of it. The points are shifted from block to block, and taken in an order, by the
    golden-ratio sequence (Niederreiter, "Random Number Generation and Quasi-Monte Carlo Methods",
    1992, section 3.1), so that what a pool has got after any number of places differs from its
    share of them by a few places only.
    """

    def __init__(self, shares: np.ndarray, length: int, seed: int) -> None:
        shift = np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)[0]
        upper = np.cumsum(np.asarray(shares, dtype=np.float64))
        self._upper = np.round(upper / upper[-1] * 2.0**_BITS).astype(np.int64)
        unit = _BITS - _BLOCK.bit_length() + 1
        self._shifts = _weyl(np.arange(-(-length // _BLOCK)), shift) >> (_BITS - unit)
        # Points i·2**unit + shift below an upper end: as many as there are such i.
        below = (self._upper[None, :] - self._shifts[:, None] + 2**unit - 1) >> unit
        counts = np.diff(below, axis=1, prepend=0)
        none = np.zeros((1, len(self._upper)), dtype=np.int64)
        self._before = np.concatenate([none, np.cumsum(counts, axis=0)])
        order = np.argsort(np.argsort(_weyl(np.arange(_BLOCK), shift)))
        self._points = order.astype(np.int64) << unit

    def drawn(self, length: int) -> np.ndarray:
        """How many of the first ``length`` places each pool gets."""
        block, rest = divmod(length, _BLOCK)
        pools = self._pools(block)[:rest] if rest else np.empty(0, dtype=np.int64)
        return self._before[block] + np.bincount(pools, minlength=len(self._upper))

    def places(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Pool of each place, and how many places before it had the same pool; int64 each."""
        parts = []
        for block in range(first // _BLOCK, -(-last // _BLOCK) if last > first else 0):
            pools = self._pools(block)
            nth = np.empty_like(pools)
            for pool, before in enumerate(self._before[block]):
                mine = np.flatnonzero(pools == pool)
                nth[mine] = before + np.arange(len(mine))
            inside = slice(max(first - block * _BLOCK, 0), last - block * _BLOCK)
            parts.append((pools[inside], nth[inside]))
        if not parts:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        pools, nth = (np.concatenate(column) for column in zip(*parts, strict=True))
        return pools, nth

    def _pools(self, block: int) -> np.ndarray:
        return np.searchsorted(self._upper, self._points + self._shifts[block], side="right")
