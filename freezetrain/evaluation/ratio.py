"""A ratio of sums over documents, and how much of it is chance: which documents were drawn."""

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean
from typing import NamedTuple

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
        float(left @ right) for left, right in ((values, values), (values, sizes), (sizes, sizes))
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


class Resampled(NamedTuple):
    """What is known of one language's ratio."""

    ratio: float  # Σ values / Σ sizes of its documents
    documents: int  # two or more
    drawn: NDArray[np.float64]  # bootstrap ratios [resamples]


def interval(languages: Sequence[Resampled], level: float = LEVEL) -> tuple[float, float]:
    """Interval of a ratio, or of the mean of several languages', whose documents are drawn apart.

    The percentile interval of the bootstrap, widened about the ratio, as it is too narrow for few
    documents: resamples of n scatter by √((n − 1) / n) too little, and how much they scatter is a
    guess as well, for which the quantiles of Student's t are to those of the normal distribution
    (Hesterberg, What Teachers Should Know About the Bootstrap, 2015, arXiv 1411.5279, narrowness
    bias). Several languages have the degrees of freedom of Welch and Satterthwaite.
    """
    free = np.array([language.documents - 1 for language in languages])
    spread = np.array(
        [
            (language.drawn - language.ratio)
            * np.sqrt(language.documents / (language.documents - 1))
            for language in languages
        ]
    )  # [languages, resamples]
    variances = (spread**2).mean(1)
    degrees = variances.sum() ** 2 / (variances**2 / free).sum() if variances.any() else free.sum()
    upper = (1 + level) / 2
    widening = students_t(upper, float(degrees)) / NormalDist().inv_cdf(upper)
    low, high = np.quantile(spread.mean(0), [1 - upper, upper]) * widening
    centre = fmean(language.ratio for language in languages)
    return centre + float(low), centre + float(high)


def students_t(probability: float, degrees: float) -> float:
    """Quantile of Student's t: exact at 1 and 2 ``degrees`` of freedom, to 0.2% from 3 on.

    Elsewhere the Cornish-Fisher expansion (Abramowitz and Stegun, 1964, 26.7.5), as scipy is not
    needed for anything else; it is to 1% above 2 and 11% too small near 1.
    """
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        return (2 * probability - 1) / math.sqrt(2 * probability * (1 - probability))
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))


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
