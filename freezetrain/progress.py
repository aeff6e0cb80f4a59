"""Progress bars of long jobs, and their stages: timed, and kept so that a repeated run goes on."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

from freezetrain.files import write_json
from freezetrain.ranks import from_first_rank, is_first_rank


class Update(Protocol):
    def __call__(self, done: int, total: int, what: str | None = None) -> None:
        """How much is done, of how much, and, where it has changed, what is being done."""


@contextmanager
def progress_bar(what: str, shown: bool = True) -> Iterator[Update]:
    """Show one bar, named ``what`` at first."""
    columns = [*Progress.get_default_columns()[:-1], TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        task = progress.add_task(escape(what), total=None)

        def update(done: int, total: int, what: str | None = None) -> None:
            described = None if what is None else escape(what)
            progress.update(task, completed=done, total=total, description=described)

        yield update


class Stages:
    """Says what is going on on rank 0, and keeps how long each stage took.

    ``folder``: where :meth:`kept` leaves what stages found. ``seconds``: stage → how long it took.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self._console = Console(stderr=True)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if is_first_rank():
            self._console.rule(f"[bold]{name}", align="left")
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make()`` gives, ready for JSON; from the folder where an earlier start left it.

        All ranks call this and, where there is nothing yet, all make it; rank 0 writes it, with the
        time that it took, and all get what stands in the file.
        """
        assert self.folder is not None
        path = self.folder / f"{name}.json"
        found = from_first_rank(_read(path))
        if found is None:
            with self(name):
                value = make()
            if is_first_rank():
                write_json(path, {"seconds": self.seconds[name], "found": value})
                found = _read(path)
            found = from_first_rank(found)
            assert found is not None
        self.seconds[name] = found["seconds"]
        return found["found"]


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
