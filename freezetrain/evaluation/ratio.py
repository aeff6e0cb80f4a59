"""A ratio of sums over documents, and how much of it is chance: which documents were drawn."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from freezetrain.errors import UserError

RESAMPLES = 1000
LEVEL = 0.95
_AT_ONCE = 2**22  # drawn numbers in memory


def standard_error(values: ArrayLike, sizes: ArrayLike) -> float | None:
    """Standard error of Σ values / Σ sizes over N documents, both [N].

    The linearized variance of a ratio estimator (Cochran, Sampling Techniques, 1977, §2.11),
    n / (n − 1) · Σ (value − ratio · size)² / (Σ size)². None for fewer than two documents, whose
    scatter cannot be seen.
    """
    values, sizes = _checked(values, sizes)
    if len(values) < 2:
        return None
    moments = (
        float(one @ other) for one, other in ((values, values), (values, sizes), (sizes, sizes))
    )
    return standard_error_of_moments(len(values), values.sum(), sizes.sum(), *moments)


def standard_error_of_moments(
    documents: int, value: float, size: float, values: float, products: float, sizes: float
) -> float:
    """The same from sums alone: Σ value, Σ size, Σ value², Σ value · size, Σ size²."""
    ratio = value / size
    squares = max(0.0, values - 2 * ratio * products + ratio * ratio * sizes)  # rounding: not below
    return float(np.sqrt(documents / (documents - 1) * squares) / size)


def bootstrap_ratios(
    values: ArrayLike, sizes: ArrayLike, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Σ values / Σ sizes of ``resamples`` draws of N documents with replacement: [resamples].

    Efron's bootstrap. The same input gives the same draws.
    """
    values, sizes = _checked(values, sizes)
    count = len(values)
    generator = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    rows = max(1, _AT_ONCE // count)
    for first in range(0, resamples, rows):
        drawn = generator.integers(count, size=(min(rows, resamples - first), count))
        ratios[first : first + rows] = values[drawn].sum(1) / sizes[drawn].sum(1)
    return ratios


def interval(ratios: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of bootstrap ratios [resamples]."""
    low, high = np.quantile(np.asarray(ratios), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(of_each: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Interval of the mean of several languages' ratios, whose documents are drawn apart."""
    return interval(np.mean(of_each, axis=0))


def _checked(
    values: ArrayLike, sizes: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, sizes = np.asarray(values, np.float64), np.asarray(sizes, np.float64)
    if values.ndim != 1 or values.shape != sizes.shape or not len(values) or not sizes.sum() > 0:
        raise UserError(
            "expected a value and a size for each document, with sizes that sum to more than 0, "
            f"got shapes {values.shape} and {sizes.shape} and a sum of {sizes.sum():g}"
        )
    return values, sizes
