import numpy as np
from rich.console import Console

from freezetrain.evaluation import DocumentSums, Figures, forgetting, forgetting_table

BEFORE = {name: Figures(100.0, 50, 100) for name in ("en", "de", "fr", "sw")}
AFTER = {
    name: Figures(nll, 50, 100)
    for name, nll in (("en", 110.0), ("de", 130.0), ("fr", 95.0), ("sw", 60.0))
}


def lines(**options):
    console = Console(width=80)
    with console.capture() as text:
        console.print(forgetting_table(BEFORE, AFTER, "sw", **options))
    return text.get().splitlines()


def first_cells(rows):
    cells = (row.replace("┃", "│").split("│") for row in rows)
    return [cell[1].strip() for cell in cells if len(cell) > 1]


def test_the_target_first_then_the_most_forgotten_then_the_mean():
    names = ["language", "sw (target)", "de", "en", "fr", "mean of 3 held out"]
    assert first_cells(lines()) == names


def test_a_row_holds_the_figures():
    (row,) = [line for line in lines() if "│ de" in line]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "de",
        "13.46",  # exp(130 / 50)
        "1.8755",  # 130 / 100 / ln 2
        "+0.3000",
        "1.822",  # exp(30 / 50)
    ]
    (mean,) = [line for line in lines() if "mean of" in line]
    assert "+0.1167" in mean  # (0.3 + 0.1 − 0.05) / 3, the target left out


def test_rows_that_are_left_out_are_counted_and_stay_in_the_mean():
    shown = lines(rows=1)
    assert first_cells(shown) == ["language", "sw (target)", "de", "mean of 3 held out"]
    assert any("+0.1167" in line for line in shown)
    assert any("2 less forgotten languages are not shown" in line for line in shown)


def test_what_may_be_chance_is_marked():
    counts = np.full(20, 50), np.full(20, 100), np.full(20, 9)
    base = np.linspace(80.0, 120.0, 20)
    rises = {"en": np.tile([1.0, -1.0], 10), "de": np.tile([1.0, 3.0], 10), "sw": np.full(20, -9.0)}
    before = {name: DocumentSums(base, *counts) for name in rises}
    after = {name: DocumentSums(base + rise, *counts) for name, rise in rises.items()}
    found = forgetting(before, after, "sw")
    console = Console(width=80)
    figures = [{name: sums.figures() for name, sums in one.items()} for one in (before, after)]
    with console.capture() as text:
        console.print(forgetting_table(*figures, "sw", found=found))
    rows = {cells[0]: cells[3] for line in text.get().splitlines() if (cells := split(line))}
    assert rows["en"] == "≈ +0.0000"
    assert rows["de"] == "+0.0200"
    assert rows["sw (target)"] == "-0.0900"
    assert rows["mean of 2 held out"] == "+0.0100"
    assert "≈: cannot be told from chance" in text.get()
    assert not any("≈" in line for line in lines())  # nothing is known there


def split(line):
    return [cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]]


def test_names_are_no_markup():
    figures = {name: Figures(100.0, 50, 100) for name in ("zh[b]", "a[/x]")}
    console = Console(width=80)
    with console.capture() as text:
        console.print(forgetting_table(figures, figures, "zh[b]", title="run[/x]"))
    for name in ("run[/x]", "zh[b] (target)", "a[/x]"):
        assert name in text.get()
