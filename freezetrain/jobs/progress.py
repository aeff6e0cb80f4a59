"""Progress bars of the jobs, on the terminal's standard error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn


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
