"""Standard errors and bootstrap intervals against simulation, scipy-free closed forms and loops."""

import numpy as np
import pytest

from freezetrain.errors import UserError
from freezetrain.evaluation.ratio import (
    Resampled,
    bootstrap_ratios,
    interval,
    standard_error,
    standard_error_of_moments,
    students_t,
)


def draw(random, count):
    sizes = random.integers(50, 400, size=count).astype(float)
    return sizes * random.normal(2.0, 0.4, size=count), sizes


def test_equal_sizes_give_the_standard_error_of_a_mean():
    values = np.random.default_rng(0).normal(size=30)
    expected = values.std(ddof=1) / np.sqrt(30) / 7
    assert standard_error(values, np.full(30, 7.0)) == pytest.approx(expected, rel=1e-12)


def test_it_is_the_scatter_of_the_ratio_over_many_samples():
    random = np.random.default_rng(1)
    samples = [draw(random, 60) for _ in range(3000)]
    scatter = np.std([values.sum() / sizes.sum() for values, sizes in samples])
    told = np.mean([standard_error(*sample) for sample in samples])
    assert told == pytest.approx(scatter, rel=0.05)


def test_from_moments_alone():
    values, sizes = draw(np.random.default_rng(2), 40)
    moments = (values @ values, values @ sizes, sizes @ sizes)
    found = standard_error_of_moments(40, values.sum(), sizes.sum(), *moments)
    assert found == pytest.approx(standard_error(values, sizes), rel=1e-9)
    assert standard_error_of_moments(3, 6.0, 3.0, 12.0, 6.0, 3.0) == 0.0  # all the same


def test_one_document_has_none():
    assert standard_error([1.0], [2.0]) is None


@pytest.mark.parametrize("count", [2, 33])
def test_bootstrap_equals_a_plain_loop_over_the_same_draws(count, monkeypatch):
    import freezetrain.evaluation.ratio as ratio

    values, sizes = draw(np.random.default_rng(3), count)
    whole = bootstrap_ratios(values, sizes, resamples=50, seed=5)
    generator = np.random.default_rng(5)
    for found in whole:
        drawn = generator.integers(count, size=count)
        expected = sum(values[i] for i in drawn) / sum(sizes[i] for i in drawn)
        assert found == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(ratio, "_AT_ONCE", count * 7)  # in pieces: the same numbers
    assert np.array_equal(bootstrap_ratios(values, sizes, resamples=50, seed=5), whole)


def resampled(values, sizes, seed=0):
    drawn = bootstrap_ratios(values, sizes, resamples=300, seed=seed)
    return Resampled(values.sum() / sizes.sum(), len(values), drawn)


@pytest.mark.parametrize("counts", [[80], [7], [2], [3, 3], [7, 40], [7] * 12])
def test_intervals_hold_the_truth_as_often_as_they_say(counts):
    """Of one language and of several; the plain percentile interval of two documents: half."""
    random = np.random.default_rng(6)
    held = []
    for seed in range(400):
        low, high = interval([resampled(*draw(random, count), seed) for count in counts])
        held.append(low <= 2.0 <= high)
    assert 0.90 < np.mean(held) < 0.98


def test_of_many_documents_it_is_the_percentile_interval():
    drawn = np.random.default_rng(7).permutation(401) / 400
    found = interval([Resampled(0.4, 10**9, drawn)])
    assert found == (pytest.approx(0.025), pytest.approx(0.975))


def test_of_few_it_is_wider_about_the_ratio():
    drawn = np.random.default_rng(7).permutation(401) / 400
    wider = 2.776445 / 1.959964 * np.sqrt(5 / 4)  # Student's t of 4 degrees of freedom
    low, high = interval([Resampled(0.4, 5, drawn)])
    assert low == pytest.approx(0.4 - wider * 0.375, rel=1e-3)
    assert high == pytest.approx(0.4 + wider * 0.575, rel=1e-3)


def test_documents_that_are_all_the_same_leave_no_doubt():
    assert interval([Resampled(0.5, 2, np.full(10, 0.5)), Resampled(1.5, 9, np.full(10, 1.5))]) == (
        1.0,
        1.0,
    )


def test_quantiles_of_students_t():
    table = {3: 3.182446, 6: 2.446912, 30: 2.042272, 1e9: 1.959964}
    for degrees, expected in table.items():
        assert students_t(0.975, degrees) == pytest.approx(expected, rel=0.002), degrees
    for degrees, expected in {1: 12.706205, 2: 4.302653}.items():
        assert students_t(0.975, degrees) == pytest.approx(expected, rel=1e-6), degrees
    assert students_t(0.975, 2.5) == pytest.approx(3.574655, rel=0.01)  # by numerical integration


def test_the_mean_of_languages_scatters_less_than_each():
    each = [resampled(*draw(np.random.default_rng(seed), 50), seed) for seed in range(9)]
    low, high = interval(each)
    widths = [np.subtract(*reversed(interval([one]))) for one in each]
    assert (high - low) == pytest.approx(np.mean(widths) / 3, rel=0.2)  # 1/√9


@pytest.mark.parametrize(
    ("values", "sizes"), [([], []), ([1.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 0.0]), ([[1.0]], [[1]])]
)
def test_bad_input_is_refused(values, sizes):
    with pytest.raises(UserError, match="a value and a size for each document"):
        standard_error(values, sizes)
