"""Does the region lie on few rows or columns? Layers × matrices, as two heat maps."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from freezetrain.report.numbers import percent
from freezetrain.report.plots.heatmap import HeatMap, heat_maps


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


def concentration_figure(region: Mapping[str, Any], width: float) -> Figure:
    """Share of each matrix's region entries in its fullest rows, and columns: ``region["top"]``."""
    fullest = f"fullest {percent(region['top'])} of"
    layers = [str(layer) for layer in region["layers"]]
    maps = [
        HeatMap(f"{fullest} {way}", region["matrices"], layers, shares(region, way), "layer")
        for way in ("rows", "columns")
    ]
    return heat_maps(
        maps,
        width,
        label="share of the matrix’s region entries",
        write=lambda share: f"{100 * share:.0f}%",
        percent=True,
    )
