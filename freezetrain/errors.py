"""The errors that freezetrain raises, each with an exit status, and near misses of a name."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input: one sentence that says what was expected, what arrived and what to do.

    The command line prints it and exits with status 2.
    """


class CheckError(Exception):
    """A check failed: a frozen entry moved, a loss is not finite.

    The command line prints it and exits with status 1.
    """


class DivergedError(CheckError):
    """A loss or a gradient of training is not finite, or so large that the settings end it."""


class Preempted(Exception):  # noqa: N818  it is no error
    """The run was stopped from outside, after it saved a checkpoint to go on from.

    The command line prints it and exits with status 75, EX_TEMPFAIL of sysexits.h.
    """


class Interrupted(Preempted):
    """The run was stopped by Ctrl-C, and its sentence says what is kept.

    The command line prints it and exits with status 130, as shells do for SIGINT.
    """


def near_misses(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'a' or 'b'?)"`` for the names in ``known`` closest to ``name``.

    Empty when nothing is close, so that it can be appended to any sentence.
    """
    close = get_close_matches(name, list(known), n=3, cutoff=0.6)
    if not close:
        return ""
    return f" (did you mean {' or '.join(repr(match) for match in close)}?)"
