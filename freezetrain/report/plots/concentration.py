"""Does the region lie on few rows or columns? Layers × matrices, as two heat maps."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from freezetrain.report.style import CARD, FONT, INK, MUTED, WIDE, dress, new_figure, ticks

# Readable without colour vision, and rising in lightness alone.
COLOURS = matplotlib.colormaps["cividis"].resampled(48)


def shares(region: Mapping[str, Any], direction: str) -> np.ndarray:
    """Matrix [matrices, layers] of ``region[direction]``; NaN where a layer lacks a matrix."""
    by_layer = region[direction]
    return np.array(
        [
            [np.nan if (share := layer.get(name)) is None else share for layer in columns]
            for name in region["matrices"]
            for columns in [[by_layer.get(str(number), {}) for number in region["layers"]]]
        ],
        dtype=float,
    ).reshape(len(region["matrices"]), len(region["layers"]))


def concentration_figure(results: Mapping[str, Any], width: float) -> Figure:
    """Share of each matrix's region entries that lie in its fullest 5% of rows, and of columns."""
    region = results["region"]
    maps = {direction: shares(region, direction) for direction in ("rows", "columns")}
    found = np.concatenate([values[~np.isnan(values)] for values in maps.values()])
    scale = Normalize(0, float(found.max()) if found.size and found.max() > 0 else 1.0)
    wide = width > WIDE
    matrices, layers = maps["rows"].shape
    height = max(24 * matrices, 60)
    figure = new_figure(width, (height if wide else 2 * height + 60) + 120)
    panels = figure.subplots(1, 2, sharey=True) if wide else figure.subplots(2, 1)
    for axes, (direction, values) in zip(panels, maps.items(), strict=True):
        dress(axes, grid="both")
        axes.grid(False)
        few = layers <= 24
        axes.pcolormesh(
            np.ma.masked_invalid(values),
            cmap=COLOURS,
            norm=scale,
            edgecolors=CARD if few else "none",
            linewidth=1.5 if few else 0,
        )
        axes.set_title(f"fullest 5% of {direction}", loc="left", size=FONT, color=INK)
        axes.set_ylim(matrices, 0)
        axes.set_xlabel("layer")
        _layer_ticks(axes, region["layers"])
        axes.set_yticks(np.arange(matrices) + 0.5, region["matrices"])
        axes.tick_params(axis="y", labelcolor=INK)
        cell = (width - 130) / (2 if wide else 1) / layers
        if cell >= 30:
            _write_shares(axes, values, scale)
    mapped = matplotlib.cm.ScalarMappable(scale, COLOURS)
    bar = figure.colorbar(
        mapped,
        ax=list(panels),
        orientation="horizontal",
        aspect=50,
        shrink=0.6 if wide else 1,
        pad=0.04,
    )
    bar.solids.set_edgecolor("face")  # type: ignore[union-attr]  # no seams between its steps
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.xaxis.set_major_locator(ticks(5))
    bar.ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    bar.ax.tick_params(length=0, colors=MUTED, labelsize=FONT - 1)
    bar.set_label("share of the matrix’s region entries", color=MUTED, size=FONT)
    return figure


def _layer_ticks(axes: Axes, layers: list[int]) -> None:
    step = -(-len(layers) // 10)
    places = np.arange(0, len(layers), step)
    axes.set_xticks(places + 0.5, [str(layers[place]) for place in places])


def _write_shares(axes: Axes, values: np.ndarray, scale: Normalize) -> None:
    for (row, column), share in np.ndenumerate(values):
        if not np.isnan(share):
            dark = scale(share) < 0.5
            axes.text(
                column + 0.5,
                row + 0.5,
                f"{100 * share:.0f}%",
                ha="center",
                va="center",
                size=FONT - 2,
                color="#ffffff" if dark else "#000000",
            )
