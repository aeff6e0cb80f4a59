"""The region's entries in one matrix, as a picture, with how full each row and column is."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from freezetrain.report.style import CARD, MUTED, VERMILLION, WIDE, dress, new_figure

_RED_GREEN_BLUE = tuple(int(VERMILLION[place : place + 2], 16) for place in (1, 3, 5))
_DOT = 2  # px, the smallest cell


def density(
    rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int], cells: tuple[int, int]
) -> np.ndarray:
    """Share of each cell's weights that are in the region, [cells[0], cells[1]], in [0, 1].

    The matrix of ``shape`` is cut into ``cells`` as evenly as whole weights allow.
    """
    found = np.zeros(cells)
    np.add.at(found, (rows * cells[0] // shape[0], columns * cells[1] // shape[1]), 1)
    sizes = [
        np.bincount(np.arange(length) * parts // length, minlength=parts)
        for length, parts in zip(shape, cells, strict=True)
    ]
    return found / np.outer(*sizes)


def entries_figure(results: Mapping[str, Any], width: float) -> Figure:
    """Every entry a dot where the picture has room for every weight, else a shade."""
    picture = results["region"]["picture"]
    shape = (int(picture["shape"][0]), int(picture["shape"][1]))
    rows = np.asarray(picture["rows"], dtype=np.int64)
    columns = np.asarray(picture["columns"], dtype=np.int64)
    beside = 60 if width > WIDE else 30
    across = width - 60 - beside
    down = float(np.clip(across * shape[0] / shape[1], 120, across))
    figure = new_figure(width, down + 100)
    grid = figure.add_gridspec(2, 2, width_ratios=[across, beside], height_ratios=[44, down])
    main = figure.add_subplot(grid[1, 0])
    cells = (min(shape[0], int(down / _DOT)), min(shape[1], int(across / _DOT)))
    shade = density(rows, columns, shape, cells)
    main.imshow(
        _image(shade),
        extent=(0, shape[1], shape[0], 0),
        aspect="auto",
        interpolation="none",
    )
    dress(main)
    main.grid(False)
    for spine in main.spines.values():
        spine.set(visible=True, color=MUTED, linewidth=0.8)
    main.set_xlabel(f"column (of {shape[1]:,})")
    main.set_ylabel(f"row (of {shape[0]:,})")
    per_row = density(rows, columns, shape, (cells[0], 1))[:, 0]
    per_column = density(rows, columns, shape, (1, cells[1]))[0]
    top = figure.add_subplot(grid[0, 0], sharex=main)
    right = figure.add_subplot(grid[1, 1], sharey=main)
    even = len(rows) / (shape[0] * shape[1])
    _profile(top, per_column, shape[1], even, "vertical")
    _profile(right, per_row, shape[0], even, "horizontal")
    return figure


def _image(shade: np.ndarray) -> np.ndarray:
    """RGBA, uint8: transparent where empty, so that the page's ground shows through."""
    image = np.zeros((*shade.shape, 4), dtype=np.uint8)
    image[..., :3] = _RED_GREEN_BLUE
    if shade.max() > 0:
        # The root lifts thinly filled cells out of the ground.
        image[..., 3] = np.round(255 * np.sqrt(shade / shade.max()))
    return image


def _profile(axes: Axes, values: np.ndarray, length: int, even: float, orientation: str) -> None:
    edges = np.linspace(0, length, len(values) + 1)
    axes.stairs(values, edges, orientation=orientation, fill=True, color=VERMILLION)  # type: ignore[arg-type]
    mark = axes.axhline if orientation == "vertical" else axes.axvline
    mark(even, color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
    dress(axes)
    axes.grid(False)
    axes.tick_params(labelbottom=False, labelleft=False)
    axes.set_facecolor(CARD)
