"""A shuffle that is computed place by place: a permutation of any size without a table."""

import numpy as np

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

    def once(values: np.ndarray) -> np.ndarray:
        left, right = values >> np.uint64(half), values & low
        for constant in rounds:
            left, right = right, left ^ (_mix(right + constant) & low)
        return (left << np.uint64(half)) | right

    found = once(np.asarray(places, dtype=np.uint64))
    while len(outside := np.flatnonzero(found >= size)):
        found[outside] = once(found[outside])
    return found.astype(np.int64)
