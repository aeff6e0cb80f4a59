"""Single weights: how much each one does, changed alone, beside random ones."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from freezetrain.report.style import KNOWN, MUTED, dress, legend, new_figure, ticks

SERIES = {"weights": "chosen", "random": "random"}
_MARKS = {"chosen": KNOWN["top"], "random": KNOWN["random"]}


def weights_figure(found: Mapping[str, Any], width: float) -> Figure:
    """The mean rise of the loss over languages, in nats per byte, against the rank of the damage.

    ``found``: results of `freezetrain perturb`.
    """
    figure = new_figure(width, 260)
    axes = figure.add_subplot()
    dress(axes, grid="y")
    axes.axhline(0, color=MUTED, linewidth=1, zorder=1.5)
    chosen = {label: _MARKS[label] for key, label in SERIES.items() if found.get(key)}
    for key, label in SERIES.items():
        rises = sorted((one["mean_rise"] for one in found.get(key) or ()), reverse=True)
        if rises:
            ranks = range(1, len(rises) + 1)
            axes.plot(ranks, rises, linewidth=1, label=label, **_MARKS[label].options())
    axes.xaxis.set_major_locator(ticks(10, integer=True))
    axes.yaxis.set_major_locator(ticks(6))
    axes.set_xlabel("rank of the weight, the most harmful first")
    axes.set_title("↑ mean rise of the loss, nats per byte", loc="left", color=MUTED, size=12)
    legend(figure, chosen, line=True)
    return figure
