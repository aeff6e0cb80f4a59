"""The order of the sequences of a run: each place is computed from the seed when asked for."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from freezetrain.errors import UserError, near_misses


@dataclass(frozen=True)
class Pool:
    """Languages whose sequences are shuffled together, epoch after epoch, and their share."""

    languages: tuple[str, ...]
    share: float


def pools(
    tokens: Mapping[str, int],
    weights: Mapping[str, float],
    temperature: float,
    name: str = "weights",
) -> list[Pool]:
    """Pools of languages that have so many ``tokens``; their shares sum to 1.

    By size they are one pool, so that each epoch is every sequence once. With ``weights``, or a
    ``temperature`` T other than 1 (shares proportional to tokens to the power 1/T: Arivazhagan et
    al., arXiv 1907.05019, section 3.2), each language is its own.

    Raises UserError as :func:`check_weights` does.
    """
    check_weights(tokens, weights, name)
    if not weights and temperature == 1:
        return [Pool(tuple(tokens), 1.0)]
    most = max(tokens.values())
    shares = weights or {
        language: (count / most) ** (1 / temperature) for language, count in tokens.items()
    }
    total = sum(shares.values())
    return [Pool((language,), shares[language] / total) for language in tokens]


def check_weights(
    languages: Collection[str], weights: Mapping[str, float], name: str = "weights"
) -> None:
    """UserError unless ``weights`` (``name`` in the recipe) names all languages and no other."""
    for language in weights:
        if language not in languages:
            raise UserError(
                f"{name} has language {language!r}, which is not read"
                f"{near_misses(language, languages)}; the languages are {' '.join(languages)}"
            )
    if weights and (missing := [language for language in languages if language not in weights]):
        raise UserError(f"{name} must name every language; {missing[0]!r} is missing")


@dataclass(frozen=True)
class Mixed:
    """Pools that are mixed in, as what is replayed: ``share`` of the places before ``until``."""

    pools: Sequence[Pool]
    """Their shares sum to 1."""
    share: float
    until: int
    """Place from which on there are none."""


BLOCK = 1024
"""Sequences of a stream, whose number is not known, that are shuffled among each other."""


class Order:
    """Which sequence of which language stands at each of ``length`` places.

    ``sizes`` are the sequences of each language; None: a stream, which has no end and is a pool by
    itself. Of the places, each of ``mixed`` gets its share for as long as it lasts, and ``target``
    pools the rest. Each pool goes through shuffled epochs of its own, a stream through its
    sequences in their order, shuffled within each ``block`` of them. Nothing is laid out in
    advance: a place is computed from the seed when it is asked for.
    """

    def __init__(
        self,
        sizes: Mapping[str, int | None],
        target: Sequence[Pool],
        length: int,
        seed: int,
        mixed: Sequence[Mixed] = (),
        block: int = BLOCK,
    ) -> None:
        self.languages = list(sizes)
        self.block = block
        self.length = length
        self._pools = [*target, *(pool for group in mixed for pool in group.pools)]
        self._seed = seed
        self._numbers = [
            np.array([self.languages.index(name) for name in pool.languages])
            for pool in self._pools
        ]
        self._ends = [_ends([sizes[name] for name in pool.languages]) for pool in self._pools]
        self._parts = [
            (first, Mixture(_shares(target, mixed, first), last - first, seed))
            for first, last in pairwise(sorted({0, length, *(min(m.until, length) for m in mixed)}))
        ]
        drawn = [part.drawn(part.length) for _, part in self._parts]
        self._before = np.cumsum([np.zeros(len(self._pools), dtype=np.int64), *drawn], axis=0)
        shares = [[pool.languages, pool.share] for pool in self._pools]
        first, *others = [(group.share, group.until) for group in mixed] or [(0.0, 0)]
        content = [list(sizes.items()), shares, seed, *first, *others]
        self.digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def places(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """At places ``first`` to ``last``, the last excluded: number of the language in
        ``languages``, and number of its sequence; int64 each."""
        language, sequence = (np.empty(last - first, dtype=np.int64) for _ in range(2))
        for (start, part), before in zip(self._parts, self._before, strict=False):
            begin, end = max(first, start), min(last, start + part.length)
            if begin >= end:
                continue
            pools, nth = part.places(begin - start, end - start)
            here = np.arange(begin - first, end - first)
            for pool in np.unique(pools).tolist():
                mine = pools == pool
                drawn = self._draw(pool, nth[mine] + before[pool])
                language[here[mine]], sequence[here[mine]] = drawn
        return language, sequence

    def _draw(self, pool: int, nth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ends = self._ends[pool]
        size = self.block if ends is None else int(ends[-1])
        epochs, places = np.divmod(nth, size)
        items = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            items[mine] = permuted(places[mine], size, (self._seed, 2, pool, epoch))
        if ends is None:
            return np.full_like(items, self._numbers[pool][0]), epochs * size + items
        which = np.searchsorted(ends, items, side="right")
        starts = np.concatenate([[0], ends[:-1]])
        return self._numbers[pool][which], items - starts[which]

    @cached_property
    def epochs(self) -> dict[str, float]:
        """How often the run goes through each language's sequences; where several are one pool,
        through all of that pool's. Streams are not in it."""
        return {
            name: float(count / ends[-1])
            for pool, count, ends in zip(self._pools, self._before[-1], self._ends, strict=True)
            for name in pool.languages
            if ends is not None
        }

    @cached_property
    def shares(self) -> dict[str, float]:
        """Share of the run's places that each stream has."""
        return {
            pool.languages[0]: float(count / self.length)
            for pool, count, ends in zip(self._pools, self._before[-1], self._ends, strict=True)
            if ends is None
        }


def _ends(sizes: Sequence[int | None]) -> np.ndarray | None:
    known = [size for size in sizes if size is not None]
    return None if len(known) < len(sizes) else np.cumsum(known)


def _shares(target: Sequence[Pool], mixed: Sequence[Mixed], place: int) -> np.ndarray:
    """Share of each pool at ``place`` and after it, up to where one of ``mixed`` ends."""
    shares = [group.share if place < group.until else 0.0 for group in mixed]
    rest = 1 - sum(shares)
    of_mixed = [
        pool.share * share
        for group, share in zip(mixed, shares, strict=True)
        for pool in group.pools
    ]
    return np.array([*(pool.share * rest for pool in target), *of_mixed])


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
        self.length = length
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


_ROUNDS = 8

_SMALLEST = 4  # bits: fewer would allow few permutations only


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64: Steele, Lea, Flood (OOPSLA 2014), doi 10.1145/2660193.2660195"""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permuted(places: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """Where a permutation of ``size`` items, which ``key`` decides, sends ``places``; int64.

    A Feistel network over the next power of four, with values outside walked on until they fall
    inside: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002), method 2.
    """
    half = max(_SMALLEST, (size - 1).bit_length() + 1) // 2
    low = np.uint64(2**half - 1)
    rounds = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)

    def permuted_once(values: np.ndarray) -> np.ndarray:
        left, right = values >> np.uint64(half), values & low
        for constant in rounds:
            left, right = right, left ^ (_mix(right + constant) & low)
        return (left << np.uint64(half)) | right

    items = permuted_once(np.asarray(places, dtype=np.uint64))
    while len(outside := np.flatnonzero(items >= size)):
        items[outside] = permuted_once(items[outside])
    return items.astype(np.int64)
