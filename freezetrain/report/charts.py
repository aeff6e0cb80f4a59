"""Charts that several pages share: one row a language, and heat maps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from freezetrain.escaping import visible
from freezetrain.report.style import (
    CARD,
    FONT,
    GRID,
    INK,
    LETTER,
    MUTED,
    VERMILLION,
    WIDE,
    Mark,
    dress,
    new_figure,
    percents,
    ticks,
)

ROW = 18  # px a language


def dot_rows(
    axes: Axes,
    labels: Sequence[str],
    values: Mapping[str, Sequence[float]],
    chosen: Mapping[str, Mark],
    intervals: Mapping[str, Sequence[Sequence[float] | None]] | None = None,
) -> None:
    """Draw ``values`` (series → one number a row) downwards, with a line over each row's span.

    ``intervals``, as ``values``, are lines in the colours of their series.
    """
    dress(axes)
    places = range(len(labels))
    for place in places:
        ends = [series[place] for series in values.values()]
        axes.plot(
            [min(0.0, *ends), max(0.0, *ends)], [place, place], color=GRID, linewidth=1, zorder=1
        )
        axes.plot(
            [min(ends), max(ends)], [place, place], color=MUTED, linewidth=1.5, alpha=0.5, zorder=2
        )
    for name, spans in (intervals or {}).items():
        for place, span in enumerate(spans):
            if span is not None:
                colour = chosen[name].colour
                axes.plot(span, [place, place], color=colour, linewidth=1.2, zorder=2.5)
    for order, (name, series) in enumerate(values.items()):
        axes.plot(
            series, places, linestyle="none", label=name, zorder=3 + order, **chosen[name].options()
        )
    axes.axvline(0, color=MUTED, linewidth=1, zorder=1.5)
    axes.set_yticks(list(places), labels)
    axes.tick_params(axis="y", labelcolor=INK, labelsize=FONT)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.margins(x=0.04)
    wide = axes.get_figure(root=True).get_figwidth() * 72 > WIDE  # type: ignore[union-attr]
    axes.xaxis.set_major_locator(ticks(8 if wide else 4))


# Readable without colour vision, and rising in lightness alone.
COLOURS = matplotlib.colormaps["cividis"].resampled(48)

_LOW, _HIGH = 13.0, 24.0  # px, least and usual height of a row

_BROAD = 64.0  # px, a cell's greatest width

_BESIDE = 11.0  # px, the least width of a cell for which maps stand side by side

_ROOM = 30.0  # px, a cell's width from which on its number is written in it


@dataclass(frozen=True)
class HeatMap:
    """``values`` [rows, columns], NaN where there is none; ``ringed``: cells (row, column)."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: np.ndarray
    across: str = ""  # what the columns are
    ringed: Sequence[tuple[int, int]] = ()


def heat_maps(
    maps: Sequence[HeatMap],
    width: float,
    *,
    label: str,
    write: Callable[[float], str],
    percent: bool = False,
    highest: float | None = None,
) -> Figure:
    """``maps``, of the same rows, side by side where there is room, else one above the other.

    All have one scale, from 0 (or the lowest value below it) to ``highest``, None for the highest
    value. ``label`` and ``percent`` are for the bar of colours, ``write`` for numbers in cells.
    """
    margin = 24 + LETTER * max(len(row) for heat_map in maps for row in heat_map.rows)
    columns = max(len(heat_map.columns) for heat_map in maps)
    beside = width > WIDE and len(maps) * columns * _BESIDE + margin <= width
    panel = (width - margin - 16) / (len(maps) if beside else 1)
    cell = min(_BROAD, panel / columns)
    row = float(np.clip(cell, _LOW, _HIGH))
    depth = max(row * len(maps[0].rows), 60) + _label_depth(maps, cell)
    height = (depth + 40) * (1 if beside else len(maps))
    figure = new_figure(width, height + 60)
    shape = (1, len(maps)) if beside else (len(maps), 1)
    panels = list(figure.subplots(*shape, sharey=beside, squeeze=False).flat)
    scale = _scale(maps, highest)
    for axes, heat_map in zip(panels, maps, strict=True):
        _draw(axes, heat_map, scale, cell)
        # Few columns keep their width; the rest of the panel stays empty.
        axes.set_xlim(0, max(columns, panel / _BROAD))
        place = "left" if columns < panel / _BROAD else "center"
        axes.set_xlabel(visible(heat_map.across), loc=place)
        if cell >= _ROOM:
            _write_values(axes, heat_map.values, scale, write)
    _bar(figure, panels, scale, label, percent, 14 / height)
    return figure


def _scale(maps: Sequence[HeatMap], highest: float | None) -> Normalize:
    values = np.concatenate([heat_map.values.ravel() for heat_map in maps])
    values = values[~np.isnan(values)]
    low = min(0.0, float(values.min())) if values.size else 0.0
    high = highest if highest is not None else float(values.max()) if values.size else 0.0
    return Normalize(low, high if high > low else low + 1.0)


def _draw(axes: Axes, heat_map: HeatMap, scale: Normalize, cell: float) -> None:
    dress(axes, grid="both")
    axes.grid(False)
    apart = cell >= 8
    axes.pcolormesh(
        np.ma.masked_invalid(heat_map.values),
        cmap=COLOURS,
        norm=scale,
        edgecolors=CARD if apart else "none",
        linewidth=min(1.5, cell / 14) if apart else 0,
    )
    for row, column in heat_map.ringed:
        corner = (column + 0.06, row + 0.06)
        ring = Rectangle(corner, 0.88, 0.88, fill=False, edgecolor=VERMILLION, linewidth=1.3)
        axes.add_patch(ring)
    axes.set_title(visible(heat_map.title), loc="left", size=FONT, color=INK)
    axes.set_ylim(len(heat_map.rows), 0)
    axes.set_yticks(np.arange(len(heat_map.rows)) + 0.5, list(heat_map.rows))
    axes.tick_params(axis="y", labelcolor=INK)
    _column_labels(axes, heat_map.columns, cell)


def _upright(columns: Sequence[str], cell: float) -> bool:
    """Whether labels stand upright, as they are wider than their cells; numbers never do."""
    numbers = all(column.isdecimal() for column in columns)
    return not numbers and LETTER * max(map(len, columns), default=0) > cell - 2


def _label_depth(maps: Sequence[HeatMap], cell: float) -> float:
    """px below a map that its columns' labels take."""
    return max(
        LETTER * max(map(len, heat_map.columns)) if _upright(heat_map.columns, cell) else 14
        for heat_map in maps
    )


def _column_labels(axes: Axes, columns: Sequence[str], cell: float) -> None:
    upright = _upright(columns, cell)
    size = float(np.clip(cell - 1, 8, FONT - 1)) if upright else FONT - 1
    needed = size + 1 if upright else LETTER * max(map(len, columns), default=1) + 4
    step = max(1, int(np.ceil(needed / cell)))
    places = range(0, len(columns), step)
    axes.set_xticks([place + 0.5 for place in places], [columns[place] for place in places])
    axes.tick_params(axis="x", labelsize=size, labelrotation=90 if upright else 0)


def _write_values(
    axes: Axes, values: np.ndarray, scale: Normalize, write: Callable[[float], str]
) -> None:
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            axes.text(
                column + 0.5,
                row + 0.5,
                write(float(value)),
                ha="center",
                va="center",
                size=FONT - 2,
                color="#ffffff" if scale(value) < 0.5 else "#000000",
            )


def _bar(
    figure: Figure, panels: list[Axes], scale: Normalize, label: str, percent: bool, pad: float
) -> None:
    bar = figure.colorbar(
        matplotlib.cm.ScalarMappable(scale, COLOURS),
        ax=panels,
        orientation="horizontal",
        aspect=50,
        anchor=(0.0, 1.0),
        shrink=min(1.0, WIDE / (72 * figure.get_figwidth())),
        pad=pad,
    )
    bar.solids.set_edgecolor("face")  # type: ignore[union-attr]  # no seams between its steps
    bar.outline.set_visible(False)
    bar.ax.xaxis.set_major_locator(ticks(5))
    if percent:
        percents(bar.ax.xaxis)
    bar.ax.tick_params(length=0, colors=MUTED, labelsize=FONT - 1)
    bar.set_label(label, color=MUTED, size=FONT)
