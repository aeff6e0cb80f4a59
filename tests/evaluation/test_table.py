from rich.console import Console

from freezetrain.evaluation import Figures, forgetting_table

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
