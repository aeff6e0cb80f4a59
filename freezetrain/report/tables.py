"""Tables of written cells: what compare, paper and quickstart still make their tables with."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from freezetrain.files import write_text
from freezetrain.formats import (
    percent,
    seconds,
)

FULLEST = 0.05  # share of rows, or columns, that the quickstart counts as the fullest


@dataclass(frozen=True)
class Cell:
    """A cell with a small note below, sorted by ``value``; None is sorted last."""

    text: str
    value: float | str | None = None
    note: str = ""


def share_cell(share: float | None) -> Cell:
    """``41.2%``, below a per cent ``0.043%``; – for None."""
    if share is None:
        return Cell("–")
    return Cell(f"{100 * share:.1f}%" if share >= 0.01 else percent(share), share)


@dataclass(frozen=True)
class Table:
    """Cells ready for the page. Columns whose place is in ``texts`` are text, the others numbers.

    ``groups`` are headings over several columns each: (heading, number of columns). ``foot`` are
    rows that stay below when the reader sorts.
    """

    title: str
    columns: list[str]
    rows: Sequence[Sequence[str | Cell]]
    texts: tuple[int, ...] = (0,)
    groups: list[tuple[str, int]] = field(default_factory=list)
    foot: Sequence[Sequence[str | Cell]] = ()
    sortable: bool = False
    broad: bool = False  # may be wider than the text

    @property
    def starts(self) -> set[int]:
        """Places of the columns with which groups begin, but for the first."""
        return set(list(accumulate(span for _, span in self.groups))[:-1])


def location_table(region: Mapping[str, Any], direction: str) -> Table:
    """Matrices × layers; ``region["top"]`` is the share of rows or columns that is the fullest."""
    rows = []
    for matrix in region["matrices"]:
        by_layer = [region[direction].get(str(layer), {}) for layer in region["layers"]]
        rows.append([matrix, *(percent(layer.get(matrix)) for layer in by_layer)])
    return Table(
        f"Share of each matrix’s region entries in its fullest {percent(region['top'])} of "
        f"{direction}, by layer; of a random region as large: "
        f"{percent(region['even'][direction])}",
        ["matrix", *(str(layer) for layer in region["layers"])],
        rows,
    )


def times_table(results: Mapping[str, Any]) -> Table:
    rows = [[_spaced(name), seconds(value)] for name, value in results["seconds"].items()]
    return Table("Time", ["stage", "time"], rows)


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def write_csv(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], columns: Sequence[str]
) -> None:
    """Write ``rows`` with a header of ``columns``, numbers in full; None is an empty field."""
    written = io.StringIO()
    writer = csv.DictWriter(written, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, written.getvalue())


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """``lines`` of cells as a table, whatever the cells hold."""
    return "\n".join(f"| {' | '.join(map(_escaped, cells))} |" for cells in lines)


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
