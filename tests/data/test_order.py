import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from freezetrain.data.order import Mixed, Mixture, Order, Pool, permuted, pools
from freezetrain.errors import UserError

ONE_POOL = [Pool(("a", "b"), 1.0)]


def read(order):
    """(language, sequence) at each place."""
    columns = order.places(0, order.length)
    assert all(column.dtype == np.int64 for column in columns)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_one_pool_goes_through_whole_epochs():
    order = Order({"a": 3, "b": 4}, ONE_POOL, 21, seed=1)
    everything = [(0, n) for n in range(3)] + [(1, n) for n in range(4)]
    places = read(order)
    epochs = [places[first : first + 7] for first in (0, 7, 14)]
    for epoch in epochs:
        assert sorted(epoch) == everything
    assert epochs[0] != epochs[1]
    assert order.epochs == {"a": 3.0, "b": 3.0}


def test_order_is_a_function_of_seed_and_place():
    sizes = {"a": 50, "b": 900}
    order = Order(sizes, ONE_POOL, 3000, seed=1)
    places = read(order)
    assert places == read(Order(sizes, ONE_POOL, 3000, seed=1))
    assert places != read(Order(sizes, ONE_POOL, 3000, seed=2))
    assert places[:1000] == read(Order(sizes, ONE_POOL, 1000, seed=1))  # not of the run's length
    for first, last in ((0, 7), (1000, 1100), (2999, 3000), (5, 5)):
        part = order.places(first, last)
        assert list(zip(part[0].tolist(), part[1].tolist(), strict=True)) == places[first:last]


def test_with_weights_each_language_goes_through_its_own_epochs():
    order = Order({"a": 10, "b": 1000}, [Pool(("a",), 0.75), Pool(("b",), 0.25)], 4000, seed=0)
    places = read(order)
    counts = Counter(language for language, _ in places)
    assert abs(counts[0] - 3000) < 6
    of_a = [sequence for language, sequence in places if language == 0]
    for first in range(0, len(of_a) - 10, 10):
        assert sorted(of_a[first : first + 10]) == list(range(10))
    of_b = [sequence for language, sequence in places if language == 1]
    assert len(set(of_b[:1000])) == min(1000, len(of_b))
    assert order.epochs == {"a": counts[0] / 10, "b": counts[1] / 1000}


def test_replay_has_its_share_until_its_end_and_the_rest_is_whole_epochs():
    sizes = {"a": 300, "b": 200, "en": 40, "es": 60}
    replayed = [Pool(("en",), 0.25), Pool(("es",), 0.75)]
    order = Order(sizes, ONE_POOL, 3000, 0, [Mixed(replayed, 0.2, 1500)])
    places = read(order)
    early, late = places[:1500], places[1500:]
    for end in (100, 777, 1500):
        counts = Counter(language for language, _ in early[:end])
        assert abs(counts[2] - 0.05 * end) < 6
        assert abs(counts[3] - 0.15 * end) < 6
    assert {language for language, _ in late} == {0, 1}
    target = [place for place in places if place[0] < 2]
    for first in range(0, len(target) - 500, 500):  # across the border too
        assert len(set(target[first : first + 500])) == 500
    spanish = [sequence for language, sequence in places if language == 3]
    assert sorted(spanish[:60]) == list(range(60))
    assert order.epochs["es"] == len(spanish) / 60


def test_several_are_mixed_in_each_with_its_share_and_its_end():
    sizes = {"a": 300, "b": 200, "en": 40, "drawn": 70}
    groups = [Mixed([Pool(("en",), 1.0)], 0.2, 1500), Mixed([Pool(("drawn",), 1.0)], 0.1, 2200)]
    order = Order(sizes, ONE_POOL, 3000, 0, groups)
    places = read(order)
    for first, last, shares in (
        (0, 1500, (0.2, 0.1)),
        (1500, 2200, (0.0, 0.1)),
        (2200, 3000, (0.0, 0.0)),
    ):
        counts = Counter(language for language, _ in places[first:last])
        for number, share in enumerate(shares, 2):
            assert abs(counts[number] - share * (last - first)) < 6 * bool(share) + 1e-9
    for languages, size in (((0, 1), 500), ((2,), 40), ((3,), 70)):  # epochs across borders
        mine = [place for place in places if place[0] in languages]
        for first in range(0, len(mine) - size, size):
            assert len(set(mine[first : first + size])) == size
    for first, last in ((0, 1600), (1499, 1501), (1400, 2300), (2199, 3000)):
        part = order.places(first, last)
        assert list(zip(*(column.tolist() for column in part), strict=True)) == places[first:last]
    assert order.epochs["drawn"] == sum(language == 3 for language, _ in places) / 70


def test_what_older_checkpoints_were_written_with_stays():
    """Digests, and hashes of all places, as version 0.13 gave them."""
    replayed = [Pool(("en",), 0.25), Pool(("es",), 0.75)]
    orders = [
        Order({"a": 50, "b": 90}, ONE_POOL, 3000, 3),
        Order(
            {"a": 50, "b": 90, "en": 9, "es": 20}, ONE_POOL, 3000, 3, [Mixed(replayed, 0.2, 1500)]
        ),
    ]
    assert [order.digest[:12] for order in orders] == ["7f5bfe5996eb", "c3542f0db711"]
    hashed = [
        hashlib.sha256(json.dumps([column.tolist() for column in order.places(0, 3000)]).encode())
        for order in orders
    ]
    assert [digest.hexdigest()[:12] for digest in hashed] == ["39552cf20226", "c872e12ac4fd"]


def test_digest_tells_orders_apart():
    sizes = {"a": 50, "b": 90, "en": 9}
    replayed = [Pool(("en",), 1.0)]

    def digest(sizes=sizes, target=ONE_POOL, length=100, seed=0, share=0.1, until=60):
        return Order(sizes, target, length, seed, [Mixed(replayed, share, until)]).digest

    apart = [Pool(("a",), 0.5), Pool(("b",), 0.5)]
    digests = [
        digest(),
        digest(sizes={**sizes, "a": 51}),
        digest(target=apart),
        digest(target=[Pool(("a",), 0.6), Pool(("b",), 0.4)]),
        digest(seed=1),
        digest(share=0.2),
        digest(until=61),
    ]
    assert len(set(digests)) == len(digests)
    assert digest(length=200) == digest()


def test_a_very_long_run_costs_next_to_nothing():
    """25 million places of 31 languages: what is kept is one count a language a thousand."""
    import tracemalloc

    languages = [f"l{n}" for n in range(31)]
    each = [Pool((name,), 1 / 31) for name in languages]
    tracemalloc.start()
    order = Order(dict.fromkeys(languages, 1_000_000), each, 25_000_000, seed=0)
    language, sequence = order.places(24_000_000, 24_000_512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20
    assert set(language.tolist()) == set(range(31))
    assert sequence.max() < 1_000_000


def test_shares_by_temperature():
    tokens = {"a": 1_000_000, "b": 10_000}
    assert pools(tokens, {}, 1.0) == [Pool(("a", "b"), 1.0)]
    a, b = pools(tokens, {}, 2.0)
    assert (a.languages, b.languages) == (("a",), ("b",))
    assert a.share / b.share == pytest.approx(10)
    assert a.share + b.share == pytest.approx(1)
    assert [pool.share for pool in pools(tokens, {"b": 0.75, "a": 0.25}, 1.0)] == [0.25, 0.75]


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ({"a": 0.5, "bb": 0.5}, "weights has language 'bb', which is not read .*did you mean 'b'"),
        ({"a": 1.0}, "'b' is missing"),
    ],
)
def test_bad_weights_are_refused(weights, complaint):
    with pytest.raises(UserError, match=complaint):
        pools({"a": 2, "b": 2}, weights, 1.0)


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


def test_any_part_of_a_mixture_reads_as_the_whole_does():
    mixture = Mixture(np.array([0.7, 0.3]), 5000, 3)
    whole = mixture.places(0, 5000)
    for first, last in ((0, 0), (0, 1), (1020, 1030), (1024, 2048), (2047, 4096), (4999, 5000)):
        part = mixture.places(first, last)
        assert part[0].tolist() == whole[0][first:last].tolist()
        assert part[1].tolist() == whole[1][first:last].tolist()


def test_languages_are_mixed_and_seeds_differ():
    first, second = (Mixture(np.array([0.5, 0.5]), 2048, n).places(0, 2048)[0] for n in (0, 1))
    assert first.tolist() != second.tolist()
    # No stretch of 16 places lacks a pool that has half of them.
    assert all(len(set(first[at : at + 16].tolist())) == 2 for at in range(0, 2048, 16))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 255, 256, 257, 1000, 70_000])
def test_a_permutation_has_every_item_once(size):
    for epoch in range(2):
        items = permuted(np.arange(size), size, (5, epoch))
        assert items.dtype == np.int64
        assert sorted(items.tolist()) == list(range(size))


def test_a_permuted_place_does_not_depend_on_others():
    whole = permuted(np.arange(1000), 1000, (1, 2))
    for first in (0, 17, 990):
        assert permuted(np.arange(first, first + 10), 1000, (1, 2)).tolist() == (
            whole[first : first + 10].tolist()
        )


def test_permutations_beyond_memory():
    size = 10**12
    places = np.arange(size - 1000, size)
    items = permuted(places, size, (3,))
    assert len(set(items.tolist())) == 1000
    assert items.min() >= 0
    assert items.max() < size
    assert 0.4 < items.mean() / size < 0.6


def test_permutations_are_well_mixed():
    """Every item is as likely at every place, and neighbours are no closer than others."""
    size, keys = 7, 3000
    counts = np.zeros((size, size))
    for key in range(keys):
        counts[np.arange(size), permuted(np.arange(size), size, (key,))] += 1
    expected = keys / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 70  # of 36 degrees of freedom: exceeded by chance once in two thousand
    items = permuted(np.arange(100_000), 100_000, (1,))
    assert abs(np.abs(np.diff(items)).mean() / (100_000 / 3) - 1) < 0.02
    assert abs(np.corrcoef(items, np.arange(100_000))[0, 1]) < 0.02
