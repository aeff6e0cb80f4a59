"""Timing things side by side: they take turns, and each figure is a ratio within one round.

Also the tables of README.md.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from freezetrain.tables import Column, Table, to_markdown


@dataclass(frozen=True)
class Options:
    """How a benchmark is run; the fields are options of the command."""

    device: str = "cpu"
    """``cpu`` or ``cuda``: where to compute, and with it the size of what is computed."""
    rounds: int = 9
    """Timed turns of each way; 5 or more, so that quartiles mean something."""


class Row(NamedTuple):
    """A line of the table."""

    what: str
    """What was compared, and on what."""
    figure: str
    """The measured figure with its spread, for example "1.004 (0.998 to 1.011)"."""
    goal: str = ""
    """What was asked of it, for example "at most 1.01"; empty where it is told for its own sake."""
    met: bool | None = None
    """Whether the goal was met; None without a goal."""
    note: str = ""
    """Where the goal is missed, why."""


def alternate(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    device: str = "cpu",
    before: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each way in each round. One untimed round comes first.

    In each round every way runs once, and every other round goes backwards, so that what slows
    the machine for a while, or what one way leaves in its caches, falls on all of them.
    ``before`` runs, untimed, before each way.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        order = list(ways) if number % 2 else list(reversed(ways))
        for name in order:
            if before is not None:
                before()
            finish(device)
            start = time.perf_counter()
            ways[name]()
            finish(device)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def finish(device: str) -> None:
    """Wait for what was queued on a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, _, high = statistics.quantiles(values)
    return {"median": statistics.median(values), "low": low, "high": high}


def ratios(seconds: Mapping[str, Sequence[float]], reference: str) -> dict[str, dict[str, float]]:
    """Of each way: median and quartiles, over rounds, of its time by that of ``reference``."""
    reference_seconds = seconds[reference]
    return {
        name: spread([own / other for own, other in zip(values, reference_seconds, strict=True)])
        for name, values in seconds.items()
    }


def shown(figure: Mapping[str, float], digits: int = 3) -> str:
    """Median and quartiles of :func:`spread` as text."""
    median, low, high = (f"{figure[name]:.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


Results = dict[str, Any]
"""What a benchmark measured, in JSON's types."""


def verdict(row: Row) -> str:
    """Whether the goal was met, and the note."""
    outcome = {None: "", True: "met", False: "missed"}[row.met]
    return ": ".join(filter(None, (outcome, row.note)))


COLUMNS = [
    Column("what", "what", text=True),
    Column("measured", "figure", text=True),
    Column("goal", "goal", text=True),
    Column("", verdict, text=True),
]


def section(title: str, about: str, machine: Mapping[str, Any], rows: Iterable[Row]) -> str:
    """A benchmark's heading, what it is about, where and when it ran, and its table."""
    where = ", ".join(str(part) for part in machine.values())
    table = to_markdown(Table("", COLUMNS, list(rows))).strip()
    return f"## {title}\n\n{about}\n\n*{where}*\n\n{table}\n"
