"""What every language lost and the target language gained, run beside run."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from freezetrain.report.languages import language_label
from freezetrain.report.plots.rows import ROW, dot_rows
from freezetrain.report.style import FONT, INK, legend, marks, new_figure


def last_forgetting(runs: Mapping[str, Any]) -> dict[str, Any]:
    """Run → what its last evaluation says of forgetting."""
    return {name: run["evaluations"][-1]["forgetting"] for name, run in runs.items()}


def forgetting_figure(results: Mapping[str, Any], width: float) -> Figure:
    """Above, the gain of the target language on a scale of its own; below, a row for each held-out
    language, the one that the last run forgot most on top. Nats per byte."""
    last = last_forgetting(results["runs"])
    by_run = {
        name: {code: value["delta_nll_per_byte"] for code, value in of_run["languages"].items()}
        for name, of_run in last.items()
    }
    reference = list(by_run.values())[-1]
    order = sorted(reference, key=lambda language: -reference[language])
    # Large hollow marks first, so that the small filled ones stay visible where both coincide.
    chosen = dict(sorted(marks(by_run).items(), key=lambda item: -item[1].size))
    gains = {name: [last[name]["target_gain"]] for name in chosen}
    has_target = all(gain != [None] for gain in gains.values())
    figure = new_figure(width, (190 if has_target else 100) + ROW * len(order))
    if has_target:
        heights = [ROW, ROW * len(order)]
        above, below = figure.subplots(2, 1, height_ratios=heights)
        dot_rows(above, [language_label(results["target"])], gains, chosen)
        above.set_xlabel("gain: fall of the loss, nats per byte →")
        above.set_title("target language, trained on", loc="left", size=FONT, color=INK)
        below.set_title("held-out languages, only watched", loc="left", size=FONT, color=INK)
    else:
        below = figure.add_subplot()
    values = {name: [by_run[name][code] for code in order] for name in chosen}
    dot_rows(below, [language_label(code) for code in order], values, chosen)
    below.set_xlabel("forgotten: rise of the loss, nats per byte →")
    legend(figure, chosen)
    return figure
