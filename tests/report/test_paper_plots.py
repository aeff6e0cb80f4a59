"""The figures of the paper's page hold the numbers that they were made from."""

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from made_paper import MATRICES, make_paper
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from freezetrain.analysis.figures import layers_figure, overlap_figures
from freezetrain.paper.figures import paper_figures
from freezetrain.report.charts import HeatMap, heat_maps
from freezetrain.report.style import VERMILLION, to_svg

WIDTHS = [350, 760]
LANGUAGES = ["en", "es", "ja", "zh"]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return make_paper(LANGUAGES, layers=3)


def mesh(figure: Figure, place: int = 0) -> np.ndarray:
    """What a heat map draws, NaN where it draws nothing."""
    (found,) = (one for one in figure.axes[place].collections if isinstance(one, QuadMesh))
    return np.ma.asarray(found.get_array()).filled(np.nan)


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {
        str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


def test_every_part_has_its_figures(results: dict[str, Any]) -> None:
    names = set(paper_figures(results))
    assert names == {
        "removal-1", "removal-3", "removal-5", "ratios", "weights-zero", "weights-scale",
        "concentration", "dimensions-removed", "selectivity", "selectivity-relative", "halves",
        "jaccard-languages", "jaccard-samples", "jaccard-methods", "jaccard-whole-model",
        "layers-whole-model", "kinds-whole-model",
    }  # fmt: skip
    bare = {key: results[key] for key in ("model", "languages", "settings", "seconds")}
    nothing = dict.fromkeys(("ablation", "weights", "dimensions", "selectivity", "overlap"))
    assert paper_figures(bare) == paper_figures(bare | nothing) == {}


def test_ratios_that_are_close_have_pictures_of_their_own() -> None:
    close = make_paper(LANGUAGES, layers=1, ratios=(0.012, 0.0125, 0.105))
    names = {name for name in paper_figures(close) if name.startswith("removal")}
    assert names == {"removal-1.2", "removal-1.25", "removal-10.5"}


def test_drawing_leaves_the_results_alone(results: dict[str, Any]) -> None:
    before = copy.deepcopy(results)
    for name in ("selectivity-relative", "jaccard-samples", "removal-1"):
        to_svg(paper_figures(results)[name](350), "x")
    assert results == before


@pytest.mark.parametrize("width", WIDTHS)
def test_selectivity_and_its_share_of_each_row(results: dict[str, Any], width: int) -> None:
    found = results["selectivity"]
    by_hand = np.array([[found["rise"][own][code] for code in LANGUAGES] for own in LANGUAGES])
    figure = paper_figures(results)["selectivity"](width)
    np.testing.assert_array_equal(mesh(figure), by_hand)
    rings = [
        (patch.get_x() // 1, patch.get_y() // 1)
        for patch in figure.axes[0].patches
        if isinstance(patch, Rectangle) and to_hex(patch.get_edgecolor()) == VERMILLION
    ]
    assert rings == [(place, place) for place in range(4)]
    relative = mesh(paper_figures(results)["selectivity-relative"](width))
    expected = [[max(value, 0) / max(row) for value in row] for row in by_hand]
    np.testing.assert_allclose(relative, expected)


def test_a_region_that_hurts_nobody_has_no_shares(results: dict[str, Any]) -> None:
    found = copy.deepcopy(results["selectivity"])
    found["rise"]["ja"] = {code: -0.1 - n for n, code in enumerate(LANGUAGES)}
    drawn = paper_figures({"selectivity": found})
    assert np.isnan(mesh(drawn["selectivity-relative"](760))[2]).all()
    figure = drawn["selectivity"](760)
    (shown,) = (c for c in figure.axes[0].collections if isinstance(c, QuadMesh))
    assert shown.get_clim()[0] == -3.1  # below 0 is told from 0


def test_jaccard_leaves_out_the_diagonal(results: dict[str, Any]) -> None:
    drawn = mesh(paper_figures(results)["jaccard-samples"](350))
    by_hand = np.array(results["overlap"]["samples"]["jaccard"])
    assert np.isnan(drawn.diagonal()).all()
    apart = ~np.eye(3, dtype=bool)
    np.testing.assert_array_equal(drawn[apart], by_hand[apart])


def test_shares_by_layer_and_kind_are_drawn_where_they_differ(results: dict[str, Any]) -> None:
    found = results["overlap"]["whole model"]
    figures = overlap_figures(found)
    drawn = lines(figures["layers"](760).axes[0])
    for name in found["names"]:
        assert drawn[name] == ([0, 1, 2], [found["by_layer"][name][str(n)] for n in range(3)])
    by_hand = [[found["by_kind"][name][kind] for kind in MATRICES] for name in found["names"]]
    np.testing.assert_array_equal(mesh(figures["kinds"](350)), by_hand)
    alone = {**found, "names": ["core"], "jaccard": [[1.0]], "by_layer": {"a": {"0": 0.01}}}
    assert set(overlap_figures(alone)) == {"kinds"}


def test_more_lines_than_can_be_told_apart_have_a_mean() -> None:
    shares = {f"l{n}": {"0": n / 100, "2": 0.2} for n in range(30)}
    shares["l0"]["1"] = 0.3
    (axes,) = layers_figure(shares, 350, title="share").axes
    drawn = lines(axes)
    assert len(drawn) == 31
    places, mean = drawn["mean of 30"]
    assert places == [0, 1, 2]
    assert mean == pytest.approx([0.145, 0.3, 0.2])


@pytest.mark.parametrize("width", WIDTHS)
def test_removal_draws_each_kind_with_its_spread(results: dict[str, Any], width: int) -> None:
    summary = {one["kind"]: one for one in results["ablation"]["summary"] if one["ratio"] == 0.03}
    (axes,) = paper_figures(results)["removal-3"](width).axes
    order = [label.get_text().removesuffix(" *").split()[-1] for label in axes.get_yticklabels()]
    drawn = lines(axes)
    for kind, one in summary.items():
        assert drawn[kind][0] == [one["languages"][code]["rise"] for code in order]
    assert drawn["top"][0] == sorted(drawn["top"][0], reverse=True)
    spans = [list(line.get_xdata()) for line in axes.lines if len(list(line.get_xdata())) == 2]
    for code in order:
        one = summary["random"]["languages"][code]
        assert [one["rise"] - one["spread"], one["rise"] + one["spread"]] in spans


def test_ratios_and_weights_and_halves(results: dict[str, Any]) -> None:
    figures = paper_figures(results)
    drawn = lines(figures["ratios"](760).axes[0])
    for kind in ("top", "random", "bottom"):
        means = [o["mean_rise"] for o in results["ablation"]["summary"] if o["kind"] == kind]
        assert drawn[kind] == ([0.01, 0.03, 0.05], means)
    drawn = lines(figures["weights-zero"](350).axes[0])
    for key, label in (("weights", "chosen"), ("random", "random")):
        rises = [one["mean_rise"] for one in results["weights"]["zero"][key]]
        assert drawn[label] == (list(range(1, 11)), rises)
    halves = results["overlap"]["halves"]
    drawn = lines(figures["halves"](350).axes[0])
    assert drawn["observed"][0] == sorted(halves["jaccard"], reverse=True)
    assert drawn["by chance"][0] == halves["expected"]


def test_whole_dimensions_beside_the_mean_of_random_ones(results: dict[str, Any]) -> None:
    ablated = results["dimensions"]["ablated"]
    (axes,) = paper_figures(results)["dimensions-removed"](760).axes
    order = [label.get_text().split()[-1] for label in axes.get_yticklabels()]
    by_hand = [
        sum(one["languages"][code]["rise"] for one in ablated["random"]) / 3 for code in order
    ]
    assert lines(axes)["random"][0] == pytest.approx(by_hand)
    assert lines(axes)["fullest"][0] == [ablated["fullest"]["languages"][c]["rise"] for c in order]


def labels_apart(axes: Axes, figure: Figure) -> bool:
    """Whether no two labels of an axis overlap."""
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    rows = [label.get_window_extent() for label in axes.get_yticklabels()]
    return all(a.x1 <= b.x0 + 1 for a, b in pairwise(boxes)) and all(
        a.y0 >= b.y1 - 1 for a, b in pairwise(rows)
    )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["layers", "languages", "long"])
def test_labels_are_apart_also_of_30_languages_and_80_layers(width: int, kind: str) -> None:
    codes = [f"l{n:02d}" for n in range(30)]
    columns = {
        "layers": [str(n) for n in range(80)],
        "languages": codes,
        "long": [f"a_name_of_its_own_{n}" for n in range(30)],
    }[kind]
    rows = MATRICES if kind == "layers" else codes
    values = np.linspace(0, 1, len(rows) * len(columns)).reshape(len(rows), len(columns))
    figure = heat_maps(
        [HeatMap("a", rows, columns, values), HeatMap("b", rows, columns, values)],
        width,
        label="share",
        write=str,
    )
    assert labels_apart(figure.axes[0], figure)
    assert figure.axes[0].get_window_extent().width > 0.45 * width


def test_numbers_are_written_where_there_is_room() -> None:
    values = np.array([[0.25, np.nan]])
    (few,) = heat_maps([HeatMap("", ["a"], ["b", "c"], values)], 350, label="", write=str).axes[:1]
    assert [text.get_text() for text in few.texts] == ["0.25"]
    many = HeatMap("", ["a"], [str(n) for n in range(40)], np.ones((1, 40)))
    assert len(heat_maps([many], 760, label="", write=str).axes[0].texts) == 0
