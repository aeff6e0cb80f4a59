"""A table, written once, for the terminal, for a page (HTML), as CSV and as Markdown.

The columns of a table say how a cell is made of a row, and the rows are objects or mappings. All
text is data: what has a meaning in rich, HTML, Markdown or a spreadsheet is escaped, and what
cannot be seen is shown.
"""

import csv
import html
import io
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from freezetrain.escaping import visible
from freezetrain.formats import fixed

if TYPE_CHECKING:
    from markupsafe import Markup
    from rich.console import Console, ConsoleOptions
    from rich.table import Table as RichTable

Get = str | int | Callable[[Any], Any]
"""How a value is read of a row: a key or an attribute, a place, or a function of the row."""


def plain(value: Any) -> str:
    """Text as it is, whole numbers with thousands separated, others with four decimals."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return fixed(value) if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Column:
    """How the cells of a column are made.

    ``value`` reads the raw value, ``write`` makes text of it; None is written as ``missing``.
    ``text``: words, to the left; else numbers, to the right. ``note`` gives a second, small line,
    empty for none. ``sort`` gives what a reader's click sorts by, the raw value where it is left
    out. ``group`` is a heading over neighbouring columns of the same group. ``foot`` is the row of
    which the cell at the foot of the table is made; None leaves that cell empty. ``style`` gives
    the style of rich (``"green"``) in which a terminal shows a row's cell.
    """

    title: str
    value: Get
    write: Callable[[Any], str] = plain
    text: bool = False
    note: Callable[[Any], str] | None = None
    sort: Callable[[Any], float | str | None] | None = None
    group: str = ""
    foot: Any = None
    style: Callable[[Any], str | None] | None = None
    missing: str = "–"

    def cell(self, row: Any) -> "Cell":
        value = self.read(row)
        text = self.missing if value is None else self.write(value)
        note = self.note(row) if self.note else ""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        key = self.sort(row) if self.sort else value if number else text if note else None
        return Cell(text, note, key, (self.style(row) if self.style else None) or "")

    def read(self, row: Any) -> Any:
        """The raw value. Raises what reading a missing key, place or attribute raises."""
        if callable(self.value):
            return self.value(row)
        if isinstance(self.value, int) or isinstance(row, Mapping):
            return row[self.value]
        return getattr(row, self.value)


@dataclass(frozen=True)
class Cell:
    """A written cell: text, a small second line, what it is sorted by, its style in a terminal."""

    text: str
    note: str = ""
    key: float | str | None = None
    style: str = ""


@dataclass(frozen=True)
class Table:
    """Rows, and the columns that read them.

    ``foot`` heads the row of the columns' ``foot``, empty for none; it stays below when a reader
    sorts. ``note`` is a line below the table. ``sortable``: a page lets the reader sort.
    A console of rich prints a table as it is: ``Console().print(table)``.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Any]
    foot: str = ""
    note: str = ""
    sortable: bool = False

    def cells(self) -> list[list[Cell]]:
        """The written cells, row by row; without the foot."""
        return [[column.cell(row) for column in self.columns] for row in self.rows]

    def foot_cells(self) -> list[Cell]:
        """The written cells of the foot; none without one."""
        if not self.foot:
            return []
        rest = [Cell("") if c.foot is None else c.cell(c.foot) for c in self.columns[1:]]
        return [Cell(self.foot), *rest]

    def __rich_console__(
        self, console: "Console", options: "ConsoleOptions"
    ) -> "Iterator[RichTable | str]":
        for number, part in enumerate(to_terminal(self, options.max_width)):
            if number:
                yield ""
            yield part


def facts_table(title: str, facts: Mapping[str, Any], heads: Sequence[str] = ("", "")) -> Table:
    """Two columns of words: what, and its value."""
    columns = [Column(heads[0], 0, text=True), Column(heads[1], 1, text=True)]
    return Table(title, columns, list(facts.items()))


def to_csv(columns: Sequence[Column], rows: Sequence[Any]) -> str:
    """Raw values with the titles as header, numbers in full; None is an empty field.

    Text that a spreadsheet would run as a formula begins with an apostrophe.
    """
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([_csv_field(_heading(column)) for column in columns])
    writer.writerows([_csv_field(column.read(row)) for column in columns] for row in rows)
    return written.getvalue()


# Some programs take the full-width signs of Chinese and Japanese for the others.
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")


def _csv_field(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = visible(str(value))
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def _heading(column: Column) -> str:
    return f"{column.group}: {column.title}" if column.group else column.title


def to_markdown(table: Table) -> str:
    """The table with its note below; its title is left to the text around it."""
    heads = [Cell(_heading(column)) for column in table.columns]
    rules = [":--" if column.text else "--:" for column in table.columns]
    lines = [[_marked(cell) for cell in heads], rules]
    lines += [[_marked(cell) for cell in row] for row in table.cells()]
    if table.foot:
        first, *rest = [_marked(cell) for cell in table.foot_cells()]
        lines.append([f"**{first}**", *rest])
    written = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return f"{written}\n{markdown(table.note)}\n" if table.note else written


# What begins code, emphasis, a link, HTML or another cell; an address becomes a link by itself.
_MARKDOWN = re.compile(r"[\\`*|~\[<&$]|(?<!\w)_|_(?!\w)|(?<=\w):(?=//)|(?<=www)\.", re.IGNORECASE)


def markdown(text: str) -> str:
    """Text as data for Markdown, in one line: a cell of a table, or part of a sentence."""
    entities = {"&": "&amp;", "<": "&lt;"}
    return _MARKDOWN.sub(
        lambda found: entities.get(found.group(), f"\\{found.group()}"), visible(text)
    )


def _marked(cell: Cell) -> str:
    return markdown(f"{cell.text} ({cell.note})" if cell.note else cell.text)


def to_html(table: Table) -> "Markup":
    """``<table>`` in a frame that scrolls, for the pages; ``sort.js`` makes its headings sort."""
    from markupsafe import Markup

    spans = [
        (group, len(list(members))) for group, members in groupby(c.group for c in table.columns)
    ]
    starts = {sum(span for _, span in spans[:place]) for place in range(1, len(spans))}
    classes = [
        _html_class(not column.text and "number", place in starts and "start")
        for place, column in enumerate(table.columns)
    ]
    long = table.sortable and len(table.rows) > 40
    frame = _html_class("scroll", len(table.columns) > 6 and "broad", long and "long")
    title = _html(table.title)
    parts = [f'<div{frame} tabindex="0" role="group" aria-label="{title}">']
    parts.append(f"<table{_html_class(table.sortable and 'sortable')}>")
    parts += [f"<caption>{title}</caption>", "<thead>"]
    if len(spans) > 1:
        parts.append("<tr>")
        for place, (group, span) in enumerate(spans):
            start = _html_class("group", place > 0 and "start")
            parts.append(f'<th colspan="{span}"{start}>{_html(group)}</th>')
        parts.append("</tr>")
    heads = zip(table.columns, classes, strict=True)
    parts += ["<tr>", *(f'<th scope="col"{c}>{_html(h.title)}</th>' for h, c in heads)]
    parts += ["</tr>", "</thead>", "<tbody>"]
    parts += [_html_row(cells, classes) for cells in table.cells()]
    parts.append("</tbody>")
    if table.foot:
        parts.append(f"<tfoot>{_html_row(table.foot_cells(), classes)}</tfoot>")
    parts += ["</table>", "</div>"]
    if table.note:
        parts.append(f'<p class="note">{_html(table.note)}</p>')
    return Markup("\n".join(parts))


def _html(text: str) -> str:
    return html.escape(visible(text))


def _html_class(*names: str | bool) -> str:
    given = " ".join(name for name in names if isinstance(name, str))
    return f' class="{given}"' if given else ""


def _html_row(cells: Sequence[Cell], classes: Sequence[str]) -> str:
    written = []
    for place, (cell, names) in enumerate(zip(cells, classes, strict=True)):
        value = "Infinity" if cell.key == math.inf else str(cell.key)  # as JavaScript spells it
        key = "" if cell.key is None else f' data-value="{_html(value)}"'
        note = f"<small>{_html(cell.note)}</small>" if cell.note else ""
        content = _html(cell.text) + note
        if place == 0:
            written.append(f'<th scope="row"{key}>{content}</th>')
        else:
            written.append(f"<td{names}{key}>{content}</td>")
    return f"<tr>{''.join(written)}</tr>"


_GAP = 2  # letters between two columns in a terminal

_WORDS = 24  # letters that a column of words has at least, where its cells are that long


def to_terminal(table: Table, width: int) -> "list[RichTable]":
    """The table for ``width`` letters: numbers are never cut or broken.

    Where the columns do not fit side by side, they follow in further tables, each with the first
    column again.
    """
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    rows, foot = table.cells(), table.foot_cells()
    heads = [_head(column, [row[n].text for row in rows]) for n, column in enumerate(table.columns)]
    blocks = _blocks(table, heads, rows, foot, width)
    parts = []
    for number, places in enumerate(blocks):
        part = RichTable(
            box=box.SIMPLE,
            show_edge=False,
            pad_edge=False,
            show_footer=bool(foot),
            title=Text(visible(table.title), "bold") if table.title and number == 0 else None,
            caption=Text(visible(table.note)) if table.note and number == len(blocks) - 1 else None,
            title_justify="left",
            caption_justify="left",
        )
        for place in places:
            words = table.columns[place].text
            part.add_column(
                Text(heads[place]),
                Text(_lines(foot[place])) if foot else "",
                justify="left" if words else "right",
                no_wrap=not words,
                overflow="fold",
                vertical="top",
            )
        for row in rows:
            part.add_row(*(Text(_lines(row[place]), row[place].style) for place in places))
        parts.append(part)
    return parts


def _lines(cell: Cell) -> str:
    text = visible(cell.text)
    return f"{text}\n{visible(cell.note)}" if cell.note else text


def _head(column: Column, texts: Sequence[str]) -> str:
    """Group and title, in lines not much longer than the cells below."""
    width = max([12, *map(len, texts)]) if not column.text else _WORDS
    parts = visible(column.group), visible(column.title)
    lines = [line for part in parts for line in textwrap.wrap(part, width)]
    return "\n".join(lines)


def _blocks(
    table: Table,
    heads: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    foot: Sequence[Cell],
    width: int,
) -> list[list[int]]:
    """Places of the columns that stand side by side, so that each block fits ``width``."""
    from rich.cells import cell_len

    needed = []
    for place, column in enumerate(table.columns):
        cells = [_lines(row[place]) for row in [*rows, *([foot] if foot else [])]]
        lines = [line for text in [heads[place], *cells] for line in text.split("\n")]
        longest = max(map(cell_len, lines), default=0)
        needed.append((min(longest, _WORDS) if column.text else longest) + _GAP + 1)
    blocks = [[0]]
    for place in range(1, len(needed)):
        if len(blocks[-1]) > 1 and sum(needed[n] for n in blocks[-1]) + needed[place] > width:
            blocks.append([0])
        blocks[-1].append(place)
    return blocks
