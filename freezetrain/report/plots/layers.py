"""Shares of several regions, or of several kinds of matrices, layer by layer."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from freezetrain.report.style import (
    FONT,
    INK,
    MOST,
    MUTED,
    VERMILLION,
    Mark,
    dress,
    legend,
    marks,
    new_figure,
    percents,
    ticks,
)

_MARKED = 16  # marks on a line
_MEAN = Mark(VERMILLION, "o", 5)


def layers_figure(
    shares: Mapping[str, Mapping[str, float]], width: float, *, title: str = ""
) -> Figure:
    """A line for each of ``shares``: series → layer, as written → share between 0 and 1.

    Of more series than can be told apart, all are thin lines of one colour and their mean a thick
    one. A layer that a series lacks is a gap.
    """
    layers = sorted({int(layer) for one in shares.values() for layer in one})
    series = {
        name: np.array([one.get(str(layer), np.nan) for layer in layers], dtype=float)
        for name, one in shares.items()
    }
    figure = new_figure(width, 280)
    axes = figure.add_subplot()
    dress(axes, grid="y")
    if len(series) <= MOST:
        chosen = marks(series)
        for name, values in series.items():
            _line(axes, layers, values, name, chosen[name])
    else:
        chosen = {f"mean of {len(series)}": _MEAN}
        for name, values in series.items():
            axes.plot(layers, values, color=MUTED, linewidth=0.8, alpha=0.5, label=name)
        (label,) = chosen
        _line(axes, layers, np.nanmean(list(series.values()), axis=0), label, _MEAN)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(ticks(10, integer=True))
    axes.yaxis.set_major_locator(ticks(6))
    percents(axes.yaxis)
    axes.set_xlabel("layer")
    axes.set_title(title, loc="left", size=FONT, color=INK)
    legend(figure, chosen, line=True)
    return figure


def _line(axes: Axes, layers: list[int], values: np.ndarray, name: str, mark: Mark) -> None:
    every = max(1, len(layers) // _MARKED)
    axes.plot(layers, values, linewidth=1.5, markevery=every, label=name, **mark.options())
