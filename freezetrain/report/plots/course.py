"""The course of the runs: what was forgotten and gained after how many steps."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from freezetrain.report.style import FONT, INK, MUTED, WIDE, dress, legend, marks, new_figure, ticks


def course_figure(results: Mapping[str, Any], width: float) -> Figure:
    """Mean forgetting of the held-out languages and gain of the target, in nats per byte."""
    runs = results["runs"]
    chosen = dict(sorted(marks(runs).items(), key=lambda item: -item[1].size))
    parts = {"mean": "forgotten, mean of the held-out languages"}
    if all(e["forgetting"]["target_gain"] is not None for e in _evaluations(runs)):
        parts["target_gain"] = "gain of the target language"
    wide = width > WIDE
    columns = len(parts) if wide else 1
    rows = len(parts) // columns
    figure = new_figure(width, 30 + 240 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for (field, title), axes in zip(parts.items(), panels, strict=True):
        dress(axes, grid="y")
        axes.axhline(0, color=MUTED, linewidth=1, zorder=1.5)
        for name, mark in chosen.items():
            _line(axes, runs[name]["evaluations"], field, mark.options())
        axes.set_title(title, loc="left", size=FONT, color=INK)
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel("nats per byte")
        axes.xaxis.set_major_locator(ticks(6, integer=True))
        axes.yaxis.set_major_locator(ticks(6))
    legend(figure, chosen, line=True)
    return figure


def _evaluations(runs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [evaluation for run in runs.values() for evaluation in run["evaluations"]]


def _line(axes: Axes, evaluations: list[Any], field: str, options: dict[str, Any]) -> None:
    steps = [evaluation["step"] for evaluation in evaluations]
    values = [evaluation["forgetting"][field] for evaluation in evaluations]
    axes.plot(steps, values, linewidth=1.5, **options)
