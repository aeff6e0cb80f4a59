import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from freezetrain.analysis.figures import (
    ablation_figure,
    concentration_figure,
    density,
    entries_figure,
)
from freezetrain.report.style import to_svg

WIDTHS = [350, 760]


def series(axes: Axes) -> dict[str, list[float]]:
    """Label → the numbers drawn, from the top row to the bottom one."""
    return {
        str(line.get_label()): [float(x) for x in np.asarray(line.get_xdata())]
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


def row_names(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


@pytest.mark.parametrize("width", WIDTHS)
def test_ablation_draws_the_rises(results: dict[str, Any], width: int) -> None:
    (axes,) = ablation_figure(results, width).axes
    codes = [name.removesuffix(" *").split()[-1] for name in row_names(axes)]
    assert sorted(codes) == sorted(results["languages"])
    drawn, ablation = series(axes), results["ablation"]
    assert set(drawn) == {"core", "random", "bottom"}
    for name, values in drawn.items():
        by_hand = [
            (ablation[name][code]["nll"] - ablation["nothing"][code]["nll"])
            / ablation["nothing"][code]["bytes"]
            / math.log(2)
            for code in codes
        ]
        assert values == pytest.approx(by_hand, abs=1e-12)
    assert drawn["core"] == sorted(drawn["core"], reverse=True)
    assert axes.yaxis_inverted()


def test_ablation_stars_the_languages_that_were_scored(results: dict[str, Any]) -> None:
    (axes,) = ablation_figure(results, 760).axes
    starred = {name.split()[-2] for name in row_names(axes) if name.endswith(" *")}
    assert starred == set(results["score_languages"])


def meshes(figure: Figure) -> list[QuadMesh]:
    found = [c for axes in figure.axes[:2] for c in axes.collections if isinstance(c, QuadMesh)]
    assert len(found) == 2
    return found


@pytest.mark.parametrize("width", WIDTHS)
def test_concentration_holds_every_share(results: dict[str, Any], width: int) -> None:
    region = results["region"]
    del region["rows"]["2"]["mlp.up_proj"]  # a layer without this matrix
    region["rows"]["3"]["mlp.up_proj"] = None
    rows, columns = meshes(concentration_figure(region | {"top": 0.05}, width))
    drawn = {"rows": np.ma.asarray(rows.get_array()), "columns": np.ma.asarray(columns.get_array())}
    for direction, values in drawn.items():
        for place, matrix in enumerate(region["matrices"]):
            for layer in range(4):
                share = region[direction][str(layer)].get(matrix)
                if share is None:
                    assert np.ma.getmaskarray(values)[place, layer]
                else:
                    assert values[place, layer] == share
    assert rows.get_clim() == columns.get_clim()


def test_density_against_a_plain_loop() -> None:
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


def test_the_picture_shows_an_entry_where_it_is(results: dict[str, Any]) -> None:
    results["region"]["picture"] |= {"shape": [40, 50], "rows": [3, 39], "columns": [7, 0]}
    figure = entries_figure(results, 760)
    alpha = np.asarray(figure.axes[0].images[0].get_array())[..., 3]
    assert alpha.shape == (40, 50)
    assert [tuple(place) for place in np.argwhere(alpha)] == [(3, 7), (39, 0)]
    assert figure.axes[0].images[0].get_extent() == [0, 50, 40, 0]  # row 0 on top


def test_a_large_matrix_is_binned(results: dict[str, Any]) -> None:
    draw = np.random.default_rng(0)
    rows, columns = draw.integers(0, 4096, 50_000), draw.integers(0, 11008, 50_000)
    results["region"]["picture"] |= {"shape": [4096, 11008], "rows": rows, "columns": columns}
    figure = entries_figure(results, 760)
    assert len(to_svg(figure, "x")) < 200_000
    assert np.asarray(figure.axes[0].images[0].get_array())[..., 3].max() == 255


def test_drawing_changes_neither_results_nor_global_settings(
    make: Callable[..., dict[str, Any]],
) -> None:
    import matplotlib

    results = make()
    before, settings = copy.deepcopy(results), dict(matplotlib.rcParams)
    for draw in (ablation_figure, entries_figure):
        to_svg(draw(results, 350), "x")
    assert results == before
    assert dict(matplotlib.rcParams) == settings
