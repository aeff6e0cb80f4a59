"""Working on one item while the next is being fetched."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Fetched = TypeVar("Fetched")


def one_ahead(fetch: Callable[[Item], Fetched], items: Iterable[Item]) -> Iterator[Fetched]:
    """``fetch(item)`` for each item in order, as :func:`map`, but one ahead, in a thread.

    Of what was fetched, no more than two are held here. An exception of ``fetch`` is raised where
    its item would have come; items after it may have been fetched too.
    """
    waiting: deque[Future[Fetched]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for item in items:
            waiting.append(pool.submit(fetch, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
