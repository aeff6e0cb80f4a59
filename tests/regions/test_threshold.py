"""The streamed radix selection against numpy's stable sort over all values at once."""

import itertools

import numpy as np
import pytest

from freezetrain.regions import threshold
from freezetrain.regions.threshold import Threshold


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
