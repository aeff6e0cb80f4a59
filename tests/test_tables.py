"""One table, rendered for a terminal, for a page, as CSV and as Markdown."""

import csv
import io
import re
from dataclasses import dataclass

import pytest
from nasty_names import FORMULAS, MARKUP, NASTY, SHOWN, unseen
from parsed_page import Page
from rich.console import Console

from freezetrain.escaping import visible
from freezetrain.formats import signed
from freezetrain.tables import Column, Table, to_csv, to_html, to_markdown


@dataclass
class Loss:
    language: str
    loss: float | None
    tokens: int


ROWS = [Loss("sw", -0.25, 12_000), Loss("zh", None, 7)]
COLUMNS = [
    Column("language", "language", text=True),
    Column("loss", "loss", signed, foot={"loss": 0.125}, note=lambda row: ""),
    Column("tokens", "tokens", group="read"),
]
TABLE = Table("Losses", COLUMNS, ROWS, note="in nats", sortable=True)
# A foot is read as any other row.
WITH_FOOT = Table(
    "Losses",
    [COLUMNS[0], Column("loss", "loss", signed, foot=Loss("", 0.125, 0)), COLUMNS[2]],
    ROWS,
    foot="mean",
)


def in_terminal(table: Table, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_terminal_shows_title_rows_foot_and_note() -> None:
    written = in_terminal(TABLE)
    assert "Losses" in written
    assert "in nats" in written
    lines = [line.split() for line in in_terminal(WITH_FOOT).splitlines()]
    assert ["sw", "−0.2500", "12,000"] in lines
    assert ["zh", "–", "7"] in lines
    assert ["mean", "+0.1250"] in lines


def test_a_table_too_wide_for_the_terminal_follows_in_blocks_with_whole_numbers() -> None:
    columns = [Column("language", 0, text=True)]
    columns += [Column("loss", n, group=f"run number {n}") for n in range(1, 13)]
    table = Table("wide", columns, [["sw", *(1_000_000 + n for n in range(1, 13))]])
    written = in_terminal(table)
    assert max(map(len, written.splitlines())) <= 80
    assert all(f"{1_000_000 + n:,}" in written for n in range(1, 13))
    assert written.count("sw") > 1


def test_csv_keeps_numbers_in_full_and_defuses_formulas() -> None:
    rows = [("=HYPERLINK(1)", 1 / 3), ("-0.5", -2.0), ("+sum", None), ("@a", 7), ("a,b", 1)]
    written = to_csv([Column("name", 0, text=True), Column("value", 1, signed)], rows)
    assert list(csv.reader(io.StringIO(written))) == [
        ["name", "value"],
        ["'=HYPERLINK(1)", str(1 / 3)],
        ["-0.5", "-2.0"],
        ["'+sum", ""],
        ["'@a", "7"],
        ["a,b", "1"],
    ]


@pytest.mark.parametrize("name", [*FORMULAS, NASTY])
def test_no_cell_of_csv_begins_a_formula(name: str) -> None:
    columns = [Column(name, 0, text=True, group=name), Column("value", 1)]
    written = to_csv(columns, [(name, -1e-9), (["="], float("-inf"))])
    assert unseen(written) == []
    (head, _), (cell, number), (other, infinite) = csv.reader(io.StringIO(written))
    assert (number, infinite, other) == ("-1e-09", "-inf", "['=']")
    assert visible(name) in cell
    for field in (head, cell):
        assert field.lstrip()[0] not in "=+-@\t\r\n＝＋－＠"


@pytest.mark.parametrize("width", [60, 200])
def test_names_are_data_in_a_terminal(width: int) -> None:
    screen = io.StringIO()
    terminal = Console(width=width, file=screen, force_terminal=True, color_system=None)
    terminal.print(every_place(NASTY))
    written = screen.getvalue()
    assert unseen(written) == []
    # A line may be broken anywhere.
    joined = re.sub(r"\s", "", written)
    assert joined.count(re.sub(r"\s", "", MARKUP)) >= 1
    assert "[/red]" in joined
    assert "\\x1b[2J" in joined


def every_place(name: str) -> Table:
    """The name in each place of a table."""
    columns = [
        Column(name, 0, text=True, note=lambda row: name, group=name),
        Column(name, 0, foot=(name,)),
    ]
    return Table(name, columns, [(name,)], foot=name, note=name, sortable=True)


def test_names_are_data_in_html() -> None:
    source = to_html(every_place(NASTY))
    assert unseen(source) == []
    page = Page(source)
    assert {tag for tag, _ in page.tags} <= {
        "div", "table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "small", "p",
    }  # fmt: skip
    assert {name for _, attributes in page.tags for name in attributes} <= {
        "class", "tabindex", "role", "aria-label", "scope", "colspan", "data-value",
    }  # fmt: skip
    assert "".join(page.text).count(SHOWN) == 10


def test_names_are_data_in_markdown() -> None:
    """As another program reads it: a table of plain text."""
    written = to_markdown(every_place(NASTY + " https://x.org www.x.org _y_ ~z~"))
    assert unseen(written) == []
    head, rule, row, foot, empty, note, end = written.split("\n")
    assert (rule, empty, end) == ("| :-- | --: |", "", "")
    for line in (head, row, foot):
        assert re.sub(r"\\.", "", line).count("|") == 3
    for line in (head, row, foot.replace("**", ""), note):
        bare = re.sub(r"\\.", "", line.replace("&lt;", "").replace("&amp;", ""))
        assert not re.search(r"[<&`*\[$~]|\b_|_\b|://|www\.", bare)


def test_markdown_has_groups_in_its_heads_and_the_foot_below() -> None:
    assert to_markdown(WITH_FOOT).splitlines() == [
        "| language | loss | read: tokens |",
        "| :-- | --: | --: |",
        "| sw | −0.2500 | 12,000 |",
        "| zh | – | 7 |",
        "| **mean** | +0.1250 |  |",
    ]


def test_html_has_what_sorting_needs() -> None:
    table = Table(
        "t",
        [
            Column("run", 0, text=True, note=lambda row: "target" if row[0] == "b" else ""),
            Column("loss", 1, signed),
        ],
        [("a", 0.5), ("b", None)],
        sortable=True,
    )
    page = to_html(table)
    assert '<table class="sortable">' in page
    assert '<td class="number" data-value="0.5">+0.5000</td>' in page
    assert '<th scope="row" data-value="b">b<small>target</small></th>' in page
    assert '<td class="number">–</td>' in page
