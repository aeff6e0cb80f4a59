"""What every language lost and the target language gained, run beside run."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from freezetrain.report.languages import language_label
from freezetrain.report.losses import model_evaluation
from freezetrain.report.plots.rows import ROW, dot_rows
from freezetrain.report.style import FONT, INK, Mark, legend, marks, new_figure


def forgetting_figure(runs: Sequence[Mapping[str, Any]], width: float) -> Figure:
    """Above, the gain of the target language on a scale of its own; below, a row for each held-out
    language, the one that the last run forgot most on top; lines are 95% intervals. Nats per byte.

    The gain is left out where a run has no target, or the runs have several. Only languages that
    are held out in all runs have a row.
    """
    last = {run["name"]: model_evaluation(run)["forgetting"] for run in runs}
    key = marks(last)
    order = common_languages(runs)
    # Large hollow marks first, so that the small filled ones stay visible where both coincide.
    chosen = dict(sorted(key.items(), key=lambda item: -item[1].size))
    targets = {change["target"] for change in last.values()}
    target = targets.pop() if len(targets) == 1 else None
    figure = new_figure(width, (100 if target is None else 190) + ROW * len(order))
    if target is not None:
        heights = [ROW, ROW * len(order)]
        above, below = figure.subplots(2, 1, height_ratios=heights)
        gains = {name: [last[name]["target_gain"]] for name in chosen}
        spans = {name: [last[name].get("target_gain_interval")] for name in chosen}
        dot_rows(above, [language_label(target)], gains, chosen, spans)
        above.set_xlabel("gain: fall of the loss, nats per byte →")
        above.set_title("target language, trained on", loc="left", size=FONT, color=INK)
        below.set_title("held-out languages, only watched", loc="left", size=FONT, color=INK)
    else:
        below = figure.add_subplot()
    _held_out(below, last, order, chosen)
    legend(figure, key)
    return figure


def common_languages(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those held out in all runs, the one that the last run forgot most first."""
    held_out = [model_evaluation(run)["forgetting"]["languages"] for run in runs]
    common = [code for code in held_out[-1] if all(code in of_run for of_run in held_out)]
    return sorted(common, key=lambda code: -held_out[-1][code]["delta_nll_per_byte"])


def _held_out(
    axes: Axes, last: Mapping[str, Any], order: Sequence[str], chosen: Mapping[str, Mark]
) -> None:
    values, spans = {}, {}
    for name in chosen:
        languages = last[name]["languages"]
        values[name] = [languages[code]["delta_nll_per_byte"] for code in order]
        spans[name] = [languages[code].get("interval") for code in order]
    dot_rows(axes, [language_label(code) for code in order], values, chosen, spans)
    axes.set_xlabel("forgotten: rise of the loss, nats per byte →")
