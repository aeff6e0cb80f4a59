"""Lines of a log, written where there is no terminal to draw on."""

import time
from collections.abc import Callable

from rich.console import Console

EVERY = 60.0  # seconds between lines that say how far something is


class LogLines:
    """Writes lines to ``console``, each with the time of day."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = time.monotonic()

    def write(self, text: str) -> None:
        """Write it now."""
        self._last = time.monotonic()
        self._console.print(f"{time.strftime('%H:%M:%S')} {text}")

    def now_and_then(self, text: Callable[[], str]) -> None:
        """Write ``text()`` if for a minute nothing was written."""
        if time.monotonic() - self._last >= EVERY:
            self.write(text())


def duration(seconds: float) -> str:
    """Two units of it: ``45 s``, ``12 min``, ``3 h 20 min``, ``2 d 5 h``."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"
