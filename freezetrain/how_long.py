"""How long a job takes, said once a part of it has been measured."""

import time
from collections.abc import Callable

from freezetrain.log_lines import duration

MEASURED = 5.0  # seconds of work after which it is said

LONG = 60.0  # seconds; of what takes less nothing is said


class HowLong:
    """Says once, some seconds after a job has begun, how long all of it takes, if over a minute.

    ``say`` writes a line; ``shorter`` names what makes the job shorter, as in ``fewer documents``.
    """

    def __init__(self, say: Callable[[str], None], shorter: str) -> None:
        self._say = say
        self._shorter = shorter
        self._begun: tuple[float, int] | None = None  # when, and how much an earlier start had done
        self._said = False

    def __call__(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` is done of the job, which is called ``what``."""
        if self._said:
            return
        now = time.monotonic()
        start, before = self._begun = self._begun or (now, done)
        if now - start < MEASURED or done <= before:
            return
        self._said = True
        seconds = (now - start) * (total - before) / (done - before)
        if seconds > LONG:
            self._say(f"{what}: about {duration(seconds)} in all; shorter with {self._shorter}")
