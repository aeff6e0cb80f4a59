"""Selection of the largest of many values against numpy's stable sort over all values at once."""

import itertools

import numpy as np
import pytest

from freezetrain.scoring import threshold
from freezetrain.scoring.threshold import Threshold, few_of_many


def taken(parts: list[np.ndarray], count: int, which: str) -> np.ndarray:
    limit = Threshold([lambda part=part: part for part in parts], count, which)
    return np.concatenate([limit.take(part) for part in parts])


def stable(parts: list[np.ndarray], count: int, which: str) -> np.ndarray:
    values = np.concatenate(parts)
    order = np.argsort(-values if which == "top" else values, kind="stable")
    mask = np.zeros(len(values), dtype=bool)
    mask[order[:count]] = True
    return mask


def bits(seed: int, size: int) -> np.ndarray:
    """Floats of any bits: subnormal, huge, of either sign; no NaN."""
    values = np.random.default_rng(seed).integers(0, 2**32, size, dtype=np.uint32).view(np.float32)
    return np.where(np.isnan(values), np.float32(0), values)


NEAR = np.float32(0.5).view(np.uint32)  # values that share their high 16 bits
SETS = {
    "tied": [np.random.default_rng(n).integers(-1, 2, 20).astype(np.float32) for n in range(3)],
    "any bits": [bits(0, 40), bits(1, 1), bits(2, 0), bits(3, 25)],
    "zeros of either sign": [np.float32([0.0, -0.0, 1.0]), np.float32([-0.0, 0.0, -1.0])],
    "equal but for low bits": [np.arange(NEAR, NEAR + 30, dtype=np.uint32).view(np.float32)[::-1]],
    "infinite": [np.float32([np.inf, 1, -np.inf]), np.float32([np.inf, -np.inf, np.inf])],
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("which", ["top", "bottom"])
def test_takes_what_a_stable_sort_takes(name: str, which: str) -> None:
    parts = SETS[name]
    for count in range(sum(map(len, parts)) + 1):
        assert np.array_equal(taken(parts, count, which), stable(parts, count, which)), count


def test_more_values_than_are_counted_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threshold, "_CHUNK", 7)
    parts = [np.random.default_rng(n).standard_normal(50).astype(np.float32) for n in range(3)]
    parts[1][::3] = parts[0][4]
    for count, which in itertools.product(range(0, 151, 10), ("top", "bottom")):
        assert np.array_equal(taken(parts, count, which), stable(parts, count, which))


def few(parts: list[np.ndarray], count: int, which: str) -> list[np.ndarray] | None:
    return few_of_many([lambda part=part: part for part in parts], [*map(len, parts)], count, which)


def shuffled(values: np.ndarray) -> np.ndarray:
    return np.random.default_rng(7).permutation(values).astype(np.float32)


RNG = np.random.default_rng(0)
MANY = {  # each a few thousand values, in arrays of odd and even lengths
    "normal": [RNG.standard_normal(n).astype(np.float32) for n in (4001, 1, 0, 2500)],
    "any bits": [bits(4, 5003), bits(5, 1024)],
    "tied": [shuffled(np.arange(5000) // 40), shuffled(np.arange(3000) // 40)],
    "zeros of either sign": [np.where(RNG.random(6000) < 0.5, np.float32(0), np.float32(-0.0))],
    "one row": [np.where(np.arange(6400) // 64 == 9, 5, RNG.random(6400)).astype(np.float32)],
    "one column": [np.where(np.arange(6400) % 64 == 9, 5, RNG.random(6400)).astype(np.float32)],
    "sorted": [np.arange(4000, dtype=np.float32), np.arange(9000, 4000, -1).astype(np.float32)],
}


@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("which", ["top", "bottom"])
def test_few_of_many_are_what_a_stable_sort_takes(
    name: str, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threshold, "_SAMPLE", 512)
    monkeypatch.setattr(threshold, "_SCANNED", 1 << 10)
    parts = MANY[name]
    for count in (1, 5, 60, 64, 100, sum(map(len, parts)) // 32):
        found = few(parts, count, which)
        if found is None:
            continue
        wanted = np.split(stable(parts, count, which), np.cumsum([*map(len, parts)])[:-1])
        for index, mask in zip(found, wanted, strict=True):
            assert index.dtype == np.int64
            assert np.array_equal(index, np.flatnonzero(mask)), count
    # Of the others' values too many are equal, or the sample holds too few of the largest.
    assert (few(parts, 60, which) is not None) == (name != "zeros of either sign")


def test_few_of_many_are_left_to_the_radix_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    values = RNG.random(4096).astype(np.float32)
    assert few([values], 40, "top") is None  # too few values to be worth a sample
    monkeypatch.setattr(threshold, "_SAMPLE", 512)
    assert few([values], 40, "top") is not None
    assert few([values], 0, "top") is None
    assert few([values], 1025, "top") is None  # more than a quarter of one
    assert few([values, values], 257, "top") is None  # more than 1/32 of several
    # The sample sees nothing but the largest values, of which there are too few.
    monkeypatch.setattr(threshold, "_sample", lambda *_: np.full(512, 2, dtype=np.float32))
    assert few([values], 40, "top") is None
