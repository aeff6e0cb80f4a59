"""What map gives, with the next item fetched while one is worked on."""

import threading

import pytest

from freezetrain.scoring.selection import one_ahead


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_gives_what_map_gives(count):
    assert list(one_ahead(lambda item: 3 * item, range(count))) == [3 * i for i in range(count)]


def test_the_next_is_fetched_while_one_is_worked_on_and_no_other():
    fetched, changed = [], threading.Condition()

    def fetch(item):
        with changed:
            fetched.append(item)
            changed.notify()
        return item

    for item in one_ahead(fetch, range(5)):
        with changed:
            assert changed.wait_for(lambda: len(fetched) >= min(item + 2, 5), timeout=60)  # noqa: B023
            assert fetched == list(range(min(item + 2, 5)))


def test_an_exception_comes_in_its_place():
    results = one_ahead(lambda item: 1 / (2 - item), range(9))
    assert [next(results), next(results)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_the_thread_ends_with_whoever_stops_early():
    before = threading.active_count()
    results = one_ahead(str, range(9))
    assert next(results) == "0"
    assert threading.active_count() > before
    results.close()
    assert threading.active_count() == before
