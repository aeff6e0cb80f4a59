"""Names of models and runs in tables: as much of their paths as tells them apart."""

from collections import Counter
from collections.abc import Sequence

from freezetrain.errors import UserError


def shortest_endings(paths: Sequence[str]) -> list[str]:
    """The shortest ending of each path, by whole parts, that no other path has.

    ``runs/a/model`` and ``runs/b/model`` are ``a/model`` and ``b/model``; an id of the hub is the
    part after the slash. Raises UserError for the same path twice.
    """
    parts = [path.rstrip("/").split("/") for path in paths]
    for path, count in Counter("/".join(one) for one in parts).items():
        if count > 1:
            raise UserError(f"expected each path once, got {path} {count} times; leave one out")
    endings = [["/".join(one[-n:]) for n in range(1, len(one) + 1)] for one in parts]
    seen = Counter(ending for one in endings for ending in one)
    # One that is itself the ending of another has none of its own, and keeps its whole path.
    return [next((ending for ending in one if seen[ending] == 1), one[-1]) for one in endings]
