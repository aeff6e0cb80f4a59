"""Regions × languages and regions × regions, as heat maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from freezetrain.report.languages import language_label
from freezetrain.report.numbers import percent, signed
from freezetrain.report.plots.heatmap import HeatMap, heat_maps
from freezetrain.report.style import WIDE


def selectivity_figure(found: Mapping[str, Any], width: float) -> Figure:
    """Rise of each language's loss (columns) with each language's region zeroed (rows).

    Nats per byte; own languages are ringed.
    """
    return heat_maps(
        [_of_languages(found, rise_matrix(found), width)],
        width,
        label="rise of the loss, nats per byte",
        write=lambda value: signed(value, 2 if abs(value) < 9.995 else 1),
    )


def relative_selectivity_figure(found: Mapping[str, Any], width: float) -> Figure:
    """The same, each row as a share of its largest rise: 100% is the language hurt most."""
    rises = rise_matrix(found)
    largest = rises.max(axis=1, keepdims=True)
    # A region that hurts no language has no shares.
    relative = np.divide(rises, largest, out=np.full_like(rises, np.nan), where=largest > 0)
    return heat_maps(
        [_of_languages(found, np.clip(relative, 0, None), width)],
        width,
        label="share of the region’s largest rise",
        write=lambda value: f"{100 * value:.0f}%",
        percent=True,
        highest=1.0,
    )


def rise_matrix(found: Mapping[str, Any]) -> np.ndarray:
    """[regions, languages evaluated]"""
    return np.array(
        [[found["rise"][own][code] for code in found["evaluated"]] for own in found["languages"]]
    )


def _of_languages(found: Mapping[str, Any], values: np.ndarray, width: float) -> HeatMap:
    rows, columns = found["languages"], found["evaluated"]
    own = [(row, columns.index(code)) for row, code in enumerate(rows) if code in columns]
    return HeatMap("region of", _labels(rows, width), _codes(columns), values, "evaluated", own)


def jaccard_figure(found: Mapping[str, Any], width: float) -> Figure:
    """Entries in both regions over entries in either, of each region with each.

    The diagonal, where a region meets itself, is left empty.
    """
    values = np.array(found["jaccard"], dtype=float)
    np.fill_diagonal(values, np.nan)
    names = found["names"]
    one = HeatMap("", _labels(names, width), _codes(names), values)
    return heat_maps(
        [one],
        width,
        label="Jaccard index",
        write=lambda value: f"{value:.2f}",
    )


def kinds_figure(by_kind: Mapping[str, Mapping[str, float]], width: float) -> Figure:
    """Share of the weights of each kind of parameter (columns) that is in each region (rows)."""
    kinds = list(dict.fromkeys(kind for shares in by_kind.values() for kind in shares))
    values = np.array(
        [[shares.get(kind, np.nan) for kind in kinds] for shares in by_kind.values()], dtype=float
    )
    one = HeatMap("region", _labels(list(by_kind), width), _codes(kinds), values)
    return heat_maps(
        [one],
        width,
        label="share of the weights that is in the region",
        write=percent,
        percent=True,
    )


def _labels(names: Sequence[str], width: float) -> list[str]:
    return [language_label(name) for name in names] if width > WIDE else _codes(names)


def _codes(names: Sequence[str], longest: int = 18) -> list[str]:
    """The end of a long name tells it from others, as that of a path does."""
    return [name if len(name) <= longest else f"…{name[1 - longest :]}" for name in names]
