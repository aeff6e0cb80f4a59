from collections import Counter

import numpy as np
import pytest

from freezetrain.data.order import Order, Pool, pools
from freezetrain.errors import UserError

ONE = [Pool(("a", "b"), 1.0)]


def read(order):
    return list(zip(*(column.tolist() for column in order.places(0, order.length)), strict=True))


def test_one_pool_goes_through_whole_epochs():
    order = Order({"a": 3, "b": 4}, ONE, 21, seed=1)
    everything = [(0, n) for n in range(3)] + [(1, n) for n in range(4)]
    found = read(order)
    epochs = [found[first : first + 7] for first in (0, 7, 14)]
    for epoch in epochs:
        assert sorted(epoch) == everything
    assert epochs[0] != epochs[1]
    assert order.epochs == {"a": 3.0, "b": 3.0}


def test_order_is_a_function_of_seed_and_place():
    sizes = {"a": 50, "b": 900}
    one = Order(sizes, ONE, 3000, seed=1)
    found = read(one)
    assert found == read(Order(sizes, ONE, 3000, seed=1))
    assert found != read(Order(sizes, ONE, 3000, seed=2))
    assert found[:1000] == read(Order(sizes, ONE, 1000, seed=1))  # not of the run's length
    for first, last in ((0, 7), (1000, 1100), (2999, 3000), (5, 5)):
        part = one.places(first, last)
        assert list(zip(part[0].tolist(), part[1].tolist(), strict=True)) == found[first:last]


def test_with_weights_each_language_goes_through_its_own_epochs():
    order = Order({"a": 10, "b": 1000}, [Pool(("a",), 0.75), Pool(("b",), 0.25)], 4000, seed=0)
    found = read(order)
    counts = Counter(language for language, _ in found)
    assert abs(counts[0] - 3000) < 6
    of_a = [sequence for language, sequence in found if language == 0]
    for first in range(0, len(of_a) - 10, 10):
        assert sorted(of_a[first : first + 10]) == list(range(10))
    of_b = [sequence for language, sequence in found if language == 1]
    assert len(set(of_b[:1000])) == min(1000, len(of_b))
    assert order.epochs == {"a": counts[0] / 10, "b": counts[1] / 1000}


def test_replay_has_its_share_until_its_end_and_the_rest_is_whole_epochs():
    sizes = {"a": 300, "b": 200, "en": 40, "es": 60}
    replayed = [Pool(("en",), 0.25), Pool(("es",), 0.75)]
    order = Order(sizes, ONE, 3000, 0, replayed=replayed, replay_share=0.2, until=1500)
    found = read(order)
    early, late = found[:1500], found[1500:]
    for end in (100, 777, 1500):
        counts = Counter(language for language, _ in early[:end])
        assert abs(counts[2] - 0.05 * end) < 6
        assert abs(counts[3] - 0.15 * end) < 6
    assert {language for language, _ in late} == {0, 1}
    target = [place for place in found if place[0] < 2]
    for first in range(0, len(target) - 500, 500):  # across the border too
        assert len(set(target[first : first + 500])) == 500
    spanish = [sequence for language, sequence in found if language == 3]
    assert sorted(spanish[:60]) == list(range(60))
    assert order.epochs["es"] == len(spanish) / 60


def test_digest_tells_orders_apart():
    sizes = {"a": 50, "b": 90, "en": 9}
    replayed = [Pool(("en",), 1.0)]

    def digest(sizes=sizes, target=ONE, length=100, seed=0, share=0.1, until=60):
        return Order(sizes, target, length, seed, replayed, share, until).digest

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


def test_places_are_int64():
    assert all(
        column.dtype == np.int64 for column in Order({"a": 3, "b": 4}, ONE, 9, 0).places(0, 9)
    )
