import numpy as np
import pytest

from freezetrain.data.order import Mixture


@pytest.mark.parametrize(
    "shares",
    [[1.0], [0.5, 0.5], [0.95, 0.05], [0.0003, 0.3, 0.6997], [1 / 30] * 30, [0.6, 0.0, 0.4]],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_shares_hold_after_any_number_of_places(shares, seed):
    length = 10_000
    mixture = Mixture(np.array(shares), length, seed)
    pools, nth = mixture.places(0, length)
    for pool, share in enumerate(shares):
        counts = np.cumsum(pools == pool)
        assert np.abs(counts - share * np.arange(1, length + 1)).max() < 6
        assert nth[pools == pool].tolist() == list(range(counts[-1]))
    for places in (0, 1, 1023, 1024, 1025, 5000, length):
        expected = np.bincount(pools[:places], minlength=len(shares))
        assert mixture.drawn(places).tolist() == expected.tolist()


def test_any_part_reads_as_the_whole_does():
    mixture = Mixture(np.array([0.7, 0.3]), 5000, 3)
    whole = mixture.places(0, 5000)
    for first, last in ((0, 0), (0, 1), (1020, 1030), (1024, 2048), (2047, 4096), (4999, 5000)):
        part = mixture.places(first, last)
        assert part[0].tolist() == whole[0][first:last].tolist()
        assert part[1].tolist() == whole[1][first:last].tolist()


def test_languages_are_mixed_and_seeds_differ():
    one, other = (Mixture(np.array([0.5, 0.5]), 2048, seed).places(0, 2048)[0] for seed in (0, 1))
    assert one.tolist() != other.tolist()
    longest = max(len(run) for run in "".join(map(str, one)).replace("01", "0 1").split())
    assert longest < 2048 / 4
    # No stretch of 16 places lacks a pool that has half of them.
    assert all(len(set(one[first : first + 16].tolist())) == 2 for first in range(0, 2048, 16))
