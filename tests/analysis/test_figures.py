"""Figures of regions hold the numbers that they were made from."""

import copy
from dataclasses import replace
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from made_paper import LANGUAGES, MATRICES, make_paper
from made_quickstart import make_quickstart
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from freezetrain.analysis.dimensions import MatrixPicture
from freezetrain.analysis.figures import (
    concentration_figure,
    density,
    effects_figure,
    entries_figure,
    jaccard_figure,
    layers_figure,
    overlap_figures,
    relative_selectivity_figure,
    selectivity_figure,
)
from freezetrain.report.charts import HeatMap, heat_maps
from freezetrain.report.style import VERMILLION, to_svg

WIDTHS = [350, 760]


@pytest.fixture(scope="module")
def paper():
    return make_paper(layers=3)


def meshes(figure: Figure) -> list[np.ndarray]:
    """What heat maps draw, NaN where they draw nothing."""
    return [
        np.ma.asarray(mesh.get_array()).filled(np.nan)
        for axes in figure.axes[:2]
        for mesh in axes.collections
        if isinstance(mesh, QuadMesh)
    ]


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {
        str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


@pytest.mark.parametrize("width", WIDTHS)
def test_effects_are_drawn_with_their_spreads(paper, width):
    effects = paper.removed[0.03]
    (axes,) = effects_figure(effects, width, starred=["es", "ja"]).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    order = [label.removesuffix(" *").split()[-1] for label in labels]
    assert {label.split()[-2] for label in labels if label.endswith(" *")} == {"es", "ja"}
    assert sorted(order) == sorted(LANGUAGES)
    assert axes.yaxis_inverted()
    drawn = lines(axes)
    for kind, effect in effects.items():
        assert drawn[kind][0] == [effect.rises[code] for code in order]
    assert drawn["top"][0] == sorted(drawn["top"][0], reverse=True)
    spans = [list(line.get_xdata()) for line in axes.lines if len(list(line.get_xdata())) == 2]
    for code in order:
        random = effects["random"].languages[code]
        assert [random.rise - random.spread, random.rise + random.spread] in spans


@pytest.mark.parametrize("width", WIDTHS)
def test_selectivity_and_its_share_of_each_row(paper, width):
    rise = paper.selectivity.rise
    by_hand = np.array([[rise[own][code] for code in LANGUAGES] for own in LANGUAGES])
    figure = selectivity_figure(paper.selectivity, width)
    np.testing.assert_array_equal(meshes(figure)[0], by_hand)
    rings = [
        (patch.get_x() // 1, patch.get_y() // 1)
        for patch in figure.axes[0].patches
        if isinstance(patch, Rectangle) and to_hex(patch.get_edgecolor()) == VERMILLION
    ]
    assert rings == [(place, place) for place in range(4)]
    relative = meshes(relative_selectivity_figure(paper.selectivity, width))[0]
    expected = [[max(value, 0) / max(row) for value in row] for row in by_hand]
    np.testing.assert_allclose(relative, expected)


def test_a_region_that_hurts_nobody_has_no_shares(paper):
    harmless = {code: -0.1 - n for n, code in enumerate(LANGUAGES)}
    selectivity = replace(paper.selectivity, rise={**paper.selectivity.rise, "ja": harmless})
    assert np.isnan(meshes(relative_selectivity_figure(selectivity, 760))[0][2]).all()
    axes = selectivity_figure(selectivity, 760).axes[0]
    (shown,) = (mesh for mesh in axes.collections if isinstance(mesh, QuadMesh))
    assert shown.get_clim()[0] == -3.1  # below 0 is told from 0


def test_jaccard_leaves_out_the_diagonal(paper):
    drawn = meshes(jaccard_figure(paper.overlap.samples, 350))[0]
    assert np.isnan(drawn.diagonal()).all()
    apart = ~np.eye(3, dtype=bool)
    np.testing.assert_array_equal(drawn[apart], np.array(paper.overlap.samples.jaccard)[apart])


def test_shares_by_layer_and_kind_are_drawn_where_they_differ(paper):
    overlap = paper.overlap.whole_model
    figures = overlap_figures(overlap)
    drawn = lines(figures["layers"](760).axes[0])
    for name in overlap.names:
        assert drawn[name] == ([0, 1, 2], [overlap.by_layer[name][n] for n in range(3)])
    by_hand = [[overlap.by_kind[name][kind] for kind in MATRICES] for name in overlap.names]
    np.testing.assert_array_equal(meshes(figures["kinds"](350))[0], by_hand)
    alone = replace(overlap, names=["core"], jaccard=[[1.0]], by_layer={"core": {0: 0.01}})
    assert set(overlap_figures(alone)) == {"kinds"}


def test_more_lines_than_can_be_told_apart_have_a_mean():
    shares = {f"l{n}": {0: n / 100, 2: 0.2} for n in range(30)}
    shares["l0"][1] = 0.3
    (axes,) = layers_figure(shares, 350, title="share").axes
    drawn = lines(axes)
    assert len(drawn) == 31
    places, mean = drawn["mean of 30"]
    assert places == [0, 1, 2]
    assert mean == pytest.approx([0.145, 0.3, 0.2])


@pytest.mark.parametrize("width", WIDTHS)
def test_concentration_holds_every_share(width):
    region = make_quickstart(layers=4).region
    del region.rows[2]["mlp.up_proj"]  # a layer without this matrix
    figure = concentration_figure(region, region.layers, region.matrices, 0.05, width)
    for values, shares in zip(meshes(figure), (region.rows, region.columns), strict=True):
        expected = [
            [shares[layer].get(kind, np.nan) for layer in range(4)] for kind in region.matrices
        ]
        np.testing.assert_array_equal(values, expected)
    rows, columns = (
        mesh for axes in figure.axes[:2] for mesh in axes.collections if isinstance(mesh, QuadMesh)
    )
    assert rows.get_clim() == columns.get_clim()


def test_density_against_a_plain_loop():
    draw = np.random.default_rng(0)
    shape, cells = (13, 29), (5, 7)
    flat = draw.choice(13 * 29, 60, replace=False)
    rows, columns = flat // 29, flat % 29
    chosen, sizes = np.zeros(cells), np.zeros(cells)
    for row in range(13):
        for column in range(29):
            cell = row * 5 // 13, column * 7 // 29
            sizes[cell] += 1
            chosen[cell] += row * 29 + column in flat
    np.testing.assert_allclose(density(rows, columns, shape, cells), chosen / sizes)


def test_the_picture_shows_an_entry_where_it_is():
    figure = entries_figure(MatrixPicture("x", [40, 50], [3, 39], [7, 0]), 760)
    alpha = np.asarray(figure.axes[0].images[0].get_array())[..., 3]
    assert alpha.shape == (40, 50)
    assert [tuple(place) for place in np.argwhere(alpha)] == [(3, 7), (39, 0)]
    assert figure.axes[0].images[0].get_extent() == [0, 50, 40, 0]  # row 0 on top


def test_a_large_matrix_is_binned():
    draw = np.random.default_rng(0)
    rows, columns = draw.integers(0, 4096, 50_000), draw.integers(0, 11008, 50_000)
    figure = entries_figure(MatrixPicture("x", [4096, 11008], rows.tolist(), columns.tolist()), 760)
    assert len(to_svg(figure, "x")) < 200_000
    assert np.asarray(figure.axes[0].images[0].get_array())[..., 3].max() == 255


def test_drawing_changes_neither_results_nor_global_settings(paper):
    before, settings = copy.deepcopy(paper), dict(matplotlib.rcParams)
    for figure in (
        effects_figure(paper.removed[0.01], 350),
        relative_selectivity_figure(paper.selectivity, 350),
        jaccard_figure(paper.overlap.samples, 350),
    ):
        to_svg(figure, "x")
    assert paper == before
    assert dict(matplotlib.rcParams) == settings


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
def test_labels_are_apart_also_of_30_languages_and_80_layers(width, kind):
    codes = [f"l{n:02d}" for n in range(30)]
    columns = {
        "layers": [str(n) for n in range(80)],
        "languages": codes,
        "long": [f"a_name_of_its_own_{n}" for n in range(30)],
    }[kind]
    rows = MATRICES if kind == "layers" else codes
    values = np.linspace(0, 1, len(rows) * len(columns)).reshape(len(rows), len(columns))
    maps = [HeatMap(title, rows, columns, values) for title in "ab"]
    figure = heat_maps(maps, width, label="share", write=str)
    assert labels_apart(figure.axes[0], figure)
    assert figure.axes[0].get_window_extent().width > 0.45 * width


def test_numbers_are_written_where_there_is_room():
    values = np.array([[0.25, np.nan]])
    (few,) = heat_maps([HeatMap("", ["a"], ["b", "c"], values)], 350, label="", write=str).axes[:1]
    assert [text.get_text() for text in few.texts] == ["0.25"]
    many = HeatMap("", ["a"], [str(n) for n in range(40)], np.ones((1, 40)))
    assert len(heat_maps([many], 760, label="", write=str).axes[0].texts) == 0
