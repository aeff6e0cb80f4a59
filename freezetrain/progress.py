"""Progress bars of long jobs; stages of a job, timed, whose results a repeated run reads again."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

from freezetrain.escaping import visible
from freezetrain.files import write_json
from freezetrain.how_long import HowLong
from freezetrain.log_lines import LogLines, duration
from freezetrain.ranks import from_first_rank, is_first_rank, on_first_rank, together
from freezetrain.terminal import Terminal, What
from freezetrain.user_files import read_json, reading


class Update(Protocol):
    def __call__(self, done: int, total: int, what: str | None = None) -> None:
        """Show that ``done`` of ``total`` is done and, where it has changed, ``what`` is."""


@contextmanager
def progress_bar(what: str, shown: bool = True, shorter: str | None = None) -> Iterator[Update]:
    """Show one bar, named ``what`` at first.

    ``shorter``: what makes the job shorter, said with how long it will take, see :class:`HowLong`;
    None: only the bar says so.
    """
    console = Terminal(stderr=True)
    if not console.is_terminal:
        yield _in_lines(what, LogLines(console), shown, shorter)
        return
    _, bar, share, _ = Progress.get_default_columns()
    columns = [What(), bar, share, TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console, disable=not shown) as progress:
        task = progress.add_task(what, total=None)
        how_long = HowLong(progress.console.print, shorter) if shown and shorter else None
        name = what

        def update(done: int, total: int, what: str | None = None) -> None:
            progress.update(task, completed=done, total=total, description=what)
            if how_long is not None:
                how_long(name, done, total)

        yield update


def _in_lines(name: str, lines: LogLines, shown: bool, shorter: str | None) -> Update:
    """In place of a bar a line each minute."""
    how_long, job = HowLong(lines.write, shorter) if shorter else None, name
    begun: tuple[float, int] | None = None  # when, and how much an earlier start had done

    def update(done: int, total: int, what: str | None = None) -> None:
        nonlocal name, begun
        name, begun = what or name, begun or (time.monotonic(), done)
        start, before = begun

        def line() -> str:
            left = (time.monotonic() - start) * (total - done) / max(done - before, 1)
            return f"{visible(name)}: {done / max(total, 1):.0%}, {duration(left)} left"

        if shown:
            if how_long is not None:
                how_long(visible(job), done, total)
            lines.now_and_then(line)

    return update


class Stages:
    """Names each stage of a job on rank 0's terminal as it begins, and times it.

    ``folder``: where :meth:`kept` keeps results. ``seconds``: stage → how long it took.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self._console = Terminal(stderr=True)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if is_first_rank():
            self._console.headline(name)
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)

    def is_kept(self, name: str) -> bool:
        """Whether an earlier start kept the result of this stage."""
        return self._file(name).is_file()

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.json"

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of ``make()``, ready for JSON, or of an earlier start that kept it.

        All ranks call this and, where nothing is kept yet, all make it; rank 0 writes it, with the
        time that it took, and all get what the file holds.
        """
        path = self._file(name)
        if not from_first_rank(path.is_file()):
            with self(name):
                result = make()
            with together():
                if is_first_rank():
                    write_json(path, {"seconds": self.seconds[name], "found": result})
        remedy = "delete the file, it is then made anew"
        stored = on_first_rank(lambda: read_json(path, "what an earlier start kept in", remedy))
        with reading("what an earlier start kept in", path, remedy):
            self.seconds[name] = float(stored["seconds"])
            return stored["found"]
