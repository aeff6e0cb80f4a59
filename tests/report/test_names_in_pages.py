"""Pages, pictures and boards of runs, variants, languages and models with nasty names."""

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import nasty_pages
import pytest
from made_runs import make_run
from nasty_names import NASTY, SHOWN, unseen
from parsed_page import Page
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from freezetrain.compare.figures import compare_figures
from freezetrain.compare.page import variants_markdown
from freezetrain.report.pictures import save_pictures, to_tensorboard
from freezetrain.report.run_plots import course_figure
from freezetrain.report.style import to_svg


@pytest.mark.parametrize("render", [nasty_pages.runs, nasty_pages.compare])  # others: in a browser
def test_no_name_is_more_than_text(tmp_path: Path, render: Callable[[Path], None]) -> None:
    render(tmp_path / "page.html")
    source = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert unseen(source) == []
    page = Page(source)
    assert not {"a", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert [tag for tag, _ in page.tags].count("script") == 1
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name == "src" for name in attributes)
        assert not str(attributes.get("href", "#")).startswith("javascript")
    assert "".join(page.text).count(SHOWN) >= 5


def test_pictures_and_boards_take_any_name(tmp_path: Path) -> None:
    figures = {"frontier": next(iter(compare_figures(nasty_pages.comparison()).values()))}
    _, svg = save_pictures(figures, tmp_path)
    ElementTree.fromstring(svg.read_bytes())
    to_tensorboard({f"{NASTY}": figures["frontier"]}, tmp_path / "board")
    events = EventAccumulator(str(tmp_path / "board"), size_guidance={"images": 0}).Reload()
    (tag,) = events.Tags()["images"]
    assert unseen(tag) == []


def test_a_name_that_begins_with_an_underscore_has_its_place_in_the_key() -> None:
    svg = to_svg(course_figure([make_run("_a"), make_run("_$b$\n")], 760), "course")
    assert re.findall(r">(_[^<]*)<", svg) == ["_a", r"_$b$\n"]


def test_markdown_of_a_comparison_is_a_table() -> None:
    written = variants_markdown(nasty_pages.comparison())
    assert unseen(written) == []
    assert not re.search(r"<(?!\s)", re.sub(r"\\.", "", written))
