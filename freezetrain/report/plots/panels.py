"""Small multiples: one panel a language, its loss against steps, on scales that all share."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from freezetrain.report.losses import interval, limit, losses
from freezetrain.report.style import FONT, MUTED, Mark, dress, new_figure, ticks

SIZE = (150.0, 100.0)  # px of one panel
_MARKED = 8  # marks on a line


def panel_figure(
    runs: Sequence[Mapping[str, Any]],
    language: str,
    chosen: Mapping[str, Mark],
    measure: str,
    across: tuple[float, float],
    up: tuple[float, float],
) -> Figure:
    """What ``language`` lost in each run that evaluates it, with its 95% interval as a band.

    ``across`` and ``up``: the ranges of steps and of ``measure`` that all panels show. A brake's
    limit for the language is a dashed line.
    """
    figure = new_figure(*SIZE)
    axes = figure.add_subplot()
    dress(axes, grid="y")
    axes.axhline(0, color=MUTED, linewidth=1, zorder=1.5)
    for run in runs:
        if language in run["history"]["evaluations"][0]["forgetting"]["languages"]:
            _line(axes, run, language, chosen[run["name"]], measure)
    axes.set_xlim(across)
    axes.set_ylim(up)
    axes.xaxis.set_major_locator(ticks(3, integer=True))
    axes.yaxis.set_major_locator(ticks(3))
    axes.tick_params(labelsize=FONT - 1.5)
    return figure


def _line(axes: Axes, run: Mapping[str, Any], language: str, mark: Mark, measure: str) -> None:
    evaluations = run["history"]["evaluations"]
    steps = [evaluation["step"] for evaluation in evaluations]
    values = [losses(one["forgetting"], measure)[language] for one in evaluations]
    bands = [interval(one, language, measure) for one in evaluations]
    known = [(step, *band) for step, band in zip(steps, bands, strict=True) if band]
    if known:
        places, low, high = zip(*known, strict=True)
        axes.fill_between(places, low, high, color=mark.colour, alpha=0.18, linewidth=0)
    axes.plot(
        steps,
        values,
        linewidth=1.3,
        markevery=max(1, len(steps) // _MARKED),
        label=run["name"],
        **mark.options() | {"markersize": mark.size * 0.7, "markeredgewidth": 1.1},
    )
    height = limit(run, language, measure)
    if height is not None:
        axes.axhline(height, color=mark.colour, linewidth=1, linestyle=(0, (5, 3)), zorder=1.6)


def key_figure(mark: Mark) -> Figure:
    """A run's line and mark, for the key of all panels."""
    figure = new_figure(30, 14)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.plot([0, 1, 2], [0, 0, 0], linewidth=1.5, markevery=[1], **mark.options())
    axes.set_ylim(-1, 1)
    return figure
