"""The ways in which freezetrain says no or not yet, and the near misses of a name."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input: one sentence that says what was expected, what arrived and what to do.

    The command line prints it and exits with status 2.
    """


class CheckError(Exception):
    """A check said no: a frozen entry moved, a loss is not finite.

    The command line prints it and exits with status 1.
    """


class DivergedError(CheckError):
    """Training came to a loss or a gradient that is not finite, or to one that ends it."""


class Preempted(Exception):  # noqa: N818  it is no error
    """The run was told to stop, has saved a checkpoint and can go on from it.

    The command line prints it and exits with status 75, EX_TEMPFAIL of sysexits.h.
    """


def near_misses(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'a' or 'b'?)"`` for the names in ``known`` closest to ``name``.

    Empty when nothing is close, so that it can be appended to any sentence.
    """
    close = get_close_matches(name, list(known), n=3, cutoff=0.6)
    if not close:
        return ""
    return f" (did you mean {' or '.join(repr(match) for match in close)}?)"
