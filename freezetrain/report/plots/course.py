"""The course of the runs: what was forgotten and gained after how many steps."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from freezetrain.report.losses import NATS, UNITS, limit, mean_loss, measure_of, worst_loss
from freezetrain.report.style import (
    FONT,
    INK,
    MUTED,
    WIDE,
    Mark,
    dress,
    legend,
    marks,
    new_figure,
    ticks,
)

_MARKED = 16  # marks on a line
GAIN = "target_gain"
TITLES = {
    "mean": "loss, mean of the held-out",
    "worst": "loss, worst of the held-out",
    GAIN: "gain of the target",
}


def course_figure(runs: Sequence[Mapping[str, Any]], width: float) -> Figure:
    """Mean and worst loss of the held-out languages, in the brakes' measure, with their limits;
    and the gain of the target where all runs have one, in nats per byte."""
    measure = measure_of(runs)
    key = marks(run["name"] for run in runs)
    # Large hollow marks first, so that the small filled ones stay visible where both coincide.
    chosen = dict(sorted(key.items(), key=lambda item: -item[1].size))
    by_name = {run["name"]: run for run in runs}
    parts = {part: TITLES[part] for part in ("mean", "worst")}
    if all(run["history"]["evaluations"][-1]["forgetting"][GAIN] is not None for run in runs):
        parts[GAIN] = TITLES[GAIN]
    columns = len(parts) if width > WIDE else 1
    rows = len(parts) // columns
    figure = new_figure(width, 30 + 230 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for (part, title), axes in zip(parts.items(), panels, strict=True):
        dress(axes, grid="y")
        axes.axhline(0, color=MUTED, linewidth=1, zorder=1.5)
        for name, mark in chosen.items():
            _line(axes, by_name[name], part, measure, mark)
        unit = UNITS[NATS] if part == GAIN else UNITS[measure]
        axes.set_title(f"{title}\n{unit}", loc="left", size=FONT, color=INK)
        axes.set_xlabel("optimizer steps")
        axes.xaxis.set_major_locator(ticks(4, integer=True))
        axes.yaxis.set_major_locator(ticks(6))
    legend(figure, key, line=True)
    return figure


def _line(axes: Axes, run: Mapping[str, Any], part: str, measure: str, mark: Mark) -> None:
    evaluations = run["history"]["evaluations"]
    if part == GAIN:
        values = [evaluation["forgetting"][GAIN] for evaluation in evaluations]
    else:
        loss = mean_loss if part == "mean" else worst_loss
        values = [loss(evaluation["forgetting"], measure) for evaluation in evaluations]
    steps = [evaluation["step"] for evaluation in evaluations]
    every = max(1, len(steps) // _MARKED)
    axes.plot(steps, values, linewidth=1.5, markevery=every, **mark.options())
    height = None if part == GAIN else limit(run, part, measure)
    if height is not None:
        axes.axhline(height, color=mark.colour, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1.6)
