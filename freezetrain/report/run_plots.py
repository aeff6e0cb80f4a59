"""The plots of runs: course, panels, plane, and what each language lost."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from freezetrain.errors import UserError
from freezetrain.formats import language_label
from freezetrain.report.charts import ROW, dot_rows
from freezetrain.report.run import (
    NATS,
    UNITS,
    interval,
    limit,
    losses,
    mean_interval,
    mean_loss,
    measure_of,
    model_evaluation,
    worst_loss,
)
from freezetrain.report.style import (
    CARD,
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


SIZE = (150.0, 100.0)  # px of one panel

_MARKED_IN_PANEL = 8  # marks on a line


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
            _panel_line(axes, run, language, chosen[run["name"]], measure)
    axes.set_xlim(across)
    axes.set_ylim(up)
    axes.xaxis.set_major_locator(ticks(3, integer=True))
    axes.yaxis.set_major_locator(ticks(3))
    axes.tick_params(labelsize=FONT - 1.5)
    return figure


def _panel_line(
    axes: Axes, run: Mapping[str, Any], language: str, mark: Mark, measure: str
) -> None:
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
        markevery=max(1, len(steps) // _MARKED_IN_PANEL),
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


_MARKED_IN_PLANE = 40  # evaluations of a run that are all marked; of more, every so many


def plane_figure(
    runs: Sequence[Mapping[str, Any]], width: float, *, ground: str | None = None
) -> Figure:
    """A course for each of ``runs`` from the base at 0, a mark for each evaluation.

    ``runs``: mappings with ``name``, ``history`` (as ``History.to_dict`` gives it) and, where there
    is one, ``brake``; ``width`` in pixels; ``ground``: a colour, None for the page's. Up is the
    mean loss of the held-out languages in the brakes' measure, in nats per byte where there is
    none.

    Raises ``UserError`` for a run without a target language.
    """
    for run in runs:
        if run["history"]["target"] is None:
            raise UserError(
                f"expected a target language, and the run {run['name']!r} has none, so that there "
                "is no gain to draw; give the tracker a target"
            )
    measure = measure_of(runs)
    chosen = marks(run["name"] for run in runs)
    figure = new_figure(width, min(440, 0.8 * width + 60))
    if ground is not None:
        figure.patch.set(facecolor=ground, alpha=1)
    axes = figure.add_subplot()
    dress(axes, grid="both")
    axes.axhline(0, color=MUTED, linewidth=1, zorder=1.5)
    axes.axvline(0, color=MUTED, linewidth=1, zorder=1.5)
    for run in runs:
        _course(axes, run, chosen[run["name"]], measure)
        _limit(axes, run, chosen[run["name"]], measure)
    for run in runs:
        _model(axes, run, measure)
    axes.margins(0.09)
    steps = 8 if width > WIDE else 5
    axes.xaxis.set_major_locator(ticks(steps))
    axes.yaxis.set_major_locator(ticks(steps))
    axes.set_xlabel("gain of the target language, nats per byte →")
    title = f"↑ mean held-out loss, {UNITS[measure]}"
    axes.set_title(title, loc="left", size=FONT, color=MUTED)
    legend(figure, chosen, line=True)
    return figure


def _place(evaluation: Mapping[str, Any], measure: str) -> tuple[float, float]:
    change = evaluation["forgetting"]
    return change["target_gain"], mean_loss(change, measure)


def _course(axes: Axes, run: Mapping[str, Any], mark: Mark, measure: str) -> None:
    places = [_place(evaluation, measure) for evaluation in run["history"]["evaluations"]]
    every = -(-len(places) // _MARKED_IN_PLANE)
    gains, losses = zip(*places, strict=True)
    axes.plot(gains, losses, linewidth=1.5, markevery=every, label=run["name"], **mark.options())


def _limit(axes: Axes, run: Mapping[str, Any], mark: Mark, measure: str) -> None:
    height = limit(run, "mean", measure)
    if height is not None:
        axes.axhline(height, color=mark.colour, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1.6)
        written = f"{height:g}" if measure == NATS else f"{height:g}%"
        axes.annotate(
            f"limit of {run['name']}: {written}"[:60],
            (0, height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 3),
            textcoords="offset points",
            size=FONT - 1,
            color=MUTED,
            bbox={"facecolor": CARD, "edgecolor": "none", "pad": 0.5},
        )


def _model(axes: Axes, run: Mapping[str, Any], measure: str) -> None:
    """A ring around the model that the run left, with its intervals as a cross.

    Its step is written beside it where the run went on from there.
    """
    evaluation = model_evaluation(run)
    gain, loss = _place(evaluation, measure)
    change = evaluation["forgetting"]
    if across := change.get("target_gain_interval"):
        axes.plot(across, [loss, loss], color=MUTED, linewidth=1, zorder=2.2)
    if up := mean_interval(change, measure):
        axes.plot([gain, gain], up, color=MUTED, linewidth=1, zorder=2.2)
    axes.plot(
        [gain],
        [loss],
        marker="o",
        markersize=16,
        markerfacecolor="none",
        markeredgecolor=INK,
        markeredgewidth=1.3,
        linestyle="none",
        zorder=4,
    )
    if evaluation is run["history"]["evaluations"][-1]:
        return
    axes.annotate(
        f"step {evaluation['step']:,}",
        (gain, loss),
        xytext=(-12, 4),
        textcoords="offset points",
        ha="right",
        size=FONT - 1,
        color=INK,
    )


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
