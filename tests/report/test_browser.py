"""The page in a real browser. Skips itself where there is no Chromium."""

from collections.abc import Iterator
from pathlib import Path

import browser
import nasty_pages
import pytest
from made_comparison import make_compare, many_variants
from made_paper import make_paper
from made_quickstart import make_quickstart
from made_runs import make_run, two
from nasty_names import unseen

from freezetrain.compare.page import render_compare
from freezetrain.paper.claims import paper_claims
from freezetrain.paper.page import render_paper
from freezetrain.quickstart.page import render_quickstart
from freezetrain.report.runs_page import render_runs

FOUND = browser.find()
pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(FOUND is None, reason=f"none of {', '.join(browser.NAMES)} is here"),
]
CODES = ["ar", "cs", "da", "de", "en", "es", "zh"]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    with browser.opened(str(FOUND), tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    long = "runs/2026-11-24/" + "a_name_without_any_space_" * 6
    many = [make_run(f"{long}{n}", [*CODES, "l" * 60], factor=n / 3) for n in range(1, 5)]
    models = [make_run(name, CODES, target=None, steps=(0, 1)) for name in ("a", "b")]
    for name, runs in {"two": two(), "long": many, "models": models}.items():
        render_runs(runs, folder / f"{name}.html")
    render_quickstart(make_quickstart(CODES), folder / "quickstart.html")
    results = make_paper([*CODES, "l" * 60], layers=32, ratios=(0.01, 0.05))
    results.claims = paper_claims(results)
    render_paper(results, folder / "paper.html")
    render_compare(make_compare(many_variants(17)), folder / "compare.html")
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["two", "long", "models", "quickstart", "paper", "compare"])
def test_quiet_alone_and_as_wide_as_the_window(
    tab: browser.Page, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    tab.open(pages[name], width, scheme)
    tab.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert tab.run("innerWidth") == width
    assert tab.run("document.documentElement.scrollWidth") == width
    asked = [address for address in tab.requests() if not address.startswith("data:")]
    assert asked == [pages[name].resolve().as_uri()]
    assert tab.told() == []
    light = tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(244, 245, 247)"
    assert light == (scheme == "light")
    shown = "[...document.querySelectorAll('.plot')].filter(p => p.checkVisibility())"
    sizes = tab.run(f"[...new Set({shown}.map(p => p.className))].sort()")
    assert set(sizes) - {"plot"} == {"plot wide" if width == 1280 else "plot narrow"}
    assert tab.run(f"{shown}.every(p => p.getBoundingClientRect().right <= {width})")
    # The first column stays in view when a table is scrolled: it must leave room for another one.
    firsts = "[...document.querySelectorAll('tbody th')]"
    assert tab.run(f"{firsts}.every(th => th.offsetWidth < 0.6 * {width})")


TABLE = "document.querySelector('[aria-labelledby=languages]')"
COLUMN = """[...%s.querySelectorAll('tbody tr')]
    .map(row => row.cells[%d].dataset.value ?? row.cells[%d].innerText)"""
SORTED = f"[...{TABLE}.querySelectorAll('th[aria-sort]')].map(h => h.ariaSort)"
BUTTONS = f"{TABLE}.querySelectorAll('th[aria-sort] button')"


def column(tab: browser.Page, place: int) -> list[str]:
    return tab.run(COLUMN % (TABLE, place, place))


def test_a_click_sorts_and_another_turns_the_order(
    tab: browser.Page, pages: dict[str, Path]
) -> None:
    tab.open(pages["two"], 1280, "light")
    assert set(tab.run(SORTED)) == {"none"}
    click = f"{BUTTONS}[%d].click()"
    before = column(tab, 0)
    tab.run(click % 1)
    deltas = [float(value) for value in column(tab, 1)]
    assert deltas == sorted(deltas, reverse=True)
    assert tab.run(SORTED)[:3] == ["none", "descending", "none"]
    tab.run(click % 1)
    assert [float(value) for value in column(tab, 1)] == deltas[::-1]
    assert tab.run(SORTED)[1] == "ascending"
    tab.run(click % 0)
    assert column(tab, 0) == sorted(before)
    assert tab.run(SORTED)[:2] == ["ascending", "none"]
    assert tab.run(f"{TABLE}.querySelector('tfoot th').innerText") == "mean of held-out"
    assert tab.told() == []


def test_the_keyboard_sorts(tab: browser.Page, pages: dict[str, Path]) -> None:
    tab.open(pages["two"], 1280, "light")
    tab.run(f"{BUTTONS}[0].focus()")
    tab.key("Tab", 9)
    assert tab.run("document.activeElement.innerText").startswith("Δ nats/byte")
    tab.key("Enter", 13, "\r")
    deltas = [float(value) for value in column(tab, 1)]
    assert deltas == sorted(deltas, reverse=True)


def test_what_is_not_known_is_sorted_last(tab: browser.Page, tmp_path: Path) -> None:
    runs = [make_run("a", CODES), make_run("b", [*CODES[2:]])]
    render_runs(runs, tmp_path / "page.html")
    tab.open(tmp_path / "page.html", 1280, "light")
    place = tab.run(
        f"[...{TABLE}.querySelectorAll('thead tr:last-child th')]"
        ".findLastIndex(h => h.innerText.startsWith('Δ'))"
    )
    for _ in range(2):
        tab.run(f"{BUTTONS}[{place}].click()")
        assert column(tab, place)[-2:] == ["–", "–"]
        assert "–" not in column(tab, place)[:-2]


@pytest.mark.parametrize("name", ["runs", "quickstart", "paper", "compare"])
def test_no_name_does_anything(tab: browser.Page, tmp_path: Path, name: str) -> None:
    path = tmp_path / "page.html"
    getattr(nasty_pages, name)(path)
    assert unseen(path.read_text(encoding="utf-8")) == []
    tab.open(path, 1280, "light")
    tab.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    tab.run("document.querySelectorAll('th button').forEach(one => one.click())")
    asked = [address for address in tab.requests() if not address.startswith("data:")]
    assert asked == [path.resolve().as_uri()]
    assert tab.told() == [], "a script of a name calls a function that there is not"
    assert tab.run("document.scripts.length") == 1
    assert "<script>boo()</script>" in tab.run("document.body.innerText")
