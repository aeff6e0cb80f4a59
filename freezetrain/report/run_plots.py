"""The plots of runs: course, panels, plane, and what each language lost."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from freezetrain.errors import UserError
from freezetrain.escaping import shortened, visible
from freezetrain.evaluation import Evaluation
from freezetrain.evaluation.brake import Measure
from freezetrain.formats import language_label
from freezetrain.report.charts import ROW, dot_rows
from freezetrain.report.run import UNITS, Rehearsed, Run, shared_measure
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

_TITLES = {
    "mean": "loss, mean of the held-out",
    "worst": "loss, worst of the held-out",
    GAIN: "gain of the target",
}


def course_figure(runs: Sequence[Run], width: float) -> Figure:
    """Mean and worst loss of the held-out languages, in the brakes' measure, with their limits;
    and the gain of the target where all runs have one, in nats per byte."""
    measure = shared_measure(runs)
    key = marks(run.name for run in runs)
    # Large hollow marks first, so that the small filled ones stay visible where both coincide.
    ordered = sorted(runs, key=lambda run: -key[run.name].size)
    parts = {part: _TITLES[part] for part in ("mean", "worst")}
    if all(run.history.target is not None for run in runs):
        parts[GAIN] = _TITLES[GAIN]
    columns = len(parts) if width > WIDE else 1
    rows = len(parts) // columns
    figure = new_figure(width, 30 + 230 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for (part, title), axes in zip(parts.items(), panels, strict=True):
        dress(axes, grid="y")
        axes.axhline(0, color=MUTED, linewidth=1, zorder=1.5)
        for run in ordered:
            _line(axes, run, part, measure, key[run.name])
        unit = UNITS["nats_per_byte"] if part == GAIN else UNITS[measure]
        axes.set_title(f"{title}\n{unit}", loc="left", size=FONT, color=INK)
        axes.set_xlabel("optimizer steps")
        axes.xaxis.set_major_locator(ticks(4, integer=True))
        axes.yaxis.set_major_locator(ticks(6))
    legend(figure, key, line=True)
    return figure


_POINTS = 48  # of a line of rehearsal, each the mean over a part of the steps


def rehearsal_figure(runs: Sequence[Run], width: float) -> Figure:
    """KL to the base on its own words, of those of ``runs`` that rehearse them by it."""
    key = _rehearsing(runs)
    figure = new_figure(width, 260)
    axes = figure.add_subplot()
    dress(axes, grid="y")
    axes.axhline(0, color=MUTED, linewidth=1, zorder=1.5)
    for run in runs:
        if run.name in key:
            steps, means = _means(run.rehearsed)
            every = max(1, len(steps) // _MARKED)
            options = key[run.name].options()
            axes.plot(steps, means, linewidth=1.5, markevery=every, label=run.name, **options)
    axes.set_title("↑ KL to the base, nats per token", loc="left", size=FONT, color=MUTED)
    axes.set_xlabel("optimizer steps")
    axes.xaxis.set_major_locator(ticks(4, integer=True))
    axes.yaxis.set_major_locator(ticks(6))
    legend(figure, key, line=True)
    return figure


def _rehearsing(runs: Sequence[Run]) -> dict[str, Mark]:
    rehearse = {run.name for run in runs if run.rehearsed}
    return {
        name: mark for name, mark in marks(run.name for run in runs).items() if name in rehearse
    }


def _means(points: Sequence[Rehearsed]) -> tuple[list[float], list[float]]:
    """Step and KL of so many points of a line, means over parts of the steps, by places."""
    first, last = points[0].step, points[-1].step
    parts: dict[int, list[Rehearsed]] = {}
    for point in points:
        part = _POINTS * (point.step - first) // (last - first + 1)
        parts.setdefault(part, []).append(point)
    steps, means = [], []
    for together in parts.values():
        places = sum(point.places for point in together)
        steps.append(sum(point.step * point.places for point in together) / places)
        means.append(sum(point.kl * point.places for point in together) / places)
    return steps, means


def scaled(value: float, measure: Measure) -> float:
    """A loss as axes show it: nats per byte, or per cent."""
    return value if measure == "nats_per_byte" else 100 * value


def _line(axes: Axes, run: Run, part: str, measure: Measure, mark: Mark) -> None:
    if part == GAIN:
        values = [_gain(evaluation) for evaluation in run.evaluations]
    else:
        values = [scaled(e.loss(part, measure).value, measure) for e in run.evaluations]
    steps = [evaluation.step for evaluation in run.evaluations]
    every = max(1, len(steps) // _MARKED)
    axes.plot(steps, values, linewidth=1.5, markevery=every, **mark.options())
    if part != GAIN:
        _limit_line(axes, run, part, measure, mark)


def _gain(evaluation: Evaluation) -> float:
    gain = evaluation.forgetting.target_gain
    assert gain is not None
    return gain


def _limit_line(axes: Axes, run: Run, name: str, measure: Measure, mark: Mark) -> float | None:
    """Draw the brake's limit and return its height; None where there is none."""
    limit = run.limit(name, measure)
    if limit is None:
        return None
    height = scaled(limit, measure)
    axes.axhline(height, color=mark.colour, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1.6)
    return height


SIZE = (150.0, 100.0)  # px of one panel

_MARKED_IN_PANEL = 8  # marks on a line


def panel_figure(
    runs: Sequence[Run],
    language: str,
    chosen: Mapping[str, Mark],
    measure: Measure,
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
        if language in run.model.forgetting.languages:
            _panel_line(axes, run, language, chosen[run.name], measure)
    axes.set_xlim(across)
    axes.set_ylim(up)
    axes.xaxis.set_major_locator(ticks(3, integer=True))
    axes.yaxis.set_major_locator(ticks(3))
    axes.tick_params(labelsize=FONT - 1.5)
    return figure


def _panel_line(axes: Axes, run: Run, language: str, mark: Mark, measure: Measure) -> None:
    steps = [evaluation.step for evaluation in run.evaluations]
    losses = [evaluation.loss(language, measure) for evaluation in run.evaluations]
    bands = [
        (step, scaled(loss.interval[0], measure), scaled(loss.interval[1], measure))
        for step, loss in zip(steps, losses, strict=True)
        if loss.interval is not None
    ]
    if bands:
        places, low, high = zip(*bands, strict=True)
        axes.fill_between(places, low, high, color=mark.colour, alpha=0.18, linewidth=0)
    axes.plot(
        steps,
        [scaled(loss.value, measure) for loss in losses],
        linewidth=1.3,
        markevery=max(1, len(steps) // _MARKED_IN_PANEL),
        label=run.name,
        **mark.options() | {"markersize": mark.size * 0.7, "markeredgewidth": 1.1},
    )
    _limit_line(axes, run, language, measure, mark)


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


def plane_figure(runs: Sequence[Run], width: float, *, ground: str | None = None) -> Figure:
    """A course for each of ``runs`` from the base at 0, a mark for each evaluation.

    ``width`` in pixels; ``ground``: a colour, None for the page's. Up is the mean loss of the
    held-out languages in the brakes' measure, in nats per byte where there is none.

    Raises ``UserError`` for a run without a target language.
    """
    for run in runs:
        if run.history.target is None:
            raise UserError(
                f"expected a target language, and the run {run.name!r} has none, so that there "
                "is no gain to draw; give the tracker a target"
            )
    measure = shared_measure(runs)
    chosen = marks(run.name for run in runs)
    figure = new_figure(width, min(440, 0.8 * width + 60))
    if ground is not None:
        figure.patch.set(facecolor=ground, alpha=1)
    axes = figure.add_subplot()
    dress(axes, grid="both")
    axes.axhline(0, color=MUTED, linewidth=1, zorder=1.5)
    axes.axvline(0, color=MUTED, linewidth=1, zorder=1.5)
    for run in runs:
        _course(axes, run, chosen[run.name], measure)
        _limit(axes, run, chosen[run.name], measure)
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


def _course(axes: Axes, run: Run, mark: Mark, measure: Measure) -> None:
    gains = [_gain(evaluation) for evaluation in run.evaluations]
    losses = [scaled(e.loss("mean", measure).value, measure) for e in run.evaluations]
    every = -(-len(gains) // _MARKED_IN_PLANE)
    axes.plot(gains, losses, linewidth=1.5, markevery=every, label=run.name, **mark.options())


def _limit(axes: Axes, run: Run, mark: Mark, measure: Measure) -> None:
    height = _limit_line(axes, run, "mean", measure, mark)
    if height is not None:
        limit = f"{height:g}{'' if measure == 'nats_per_byte' else '%'}"
        axes.annotate(
            shortened(f"limit of {visible(run.name)}: {limit}", 60),
            (0, height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 3),
            textcoords="offset points",
            size=FONT - 1,
            color=MUTED,
            bbox={"facecolor": CARD, "edgecolor": "none", "pad": 0.5},
        )


def _model(axes: Axes, run: Run, measure: Measure) -> None:
    """A ring around the model that the run left, with its intervals as a cross.

    Its step is written beside it where the run went on from there.
    """
    mean = run.model.loss("mean", measure)
    gain, loss = _gain(run.model), scaled(mean.value, measure)
    if across := run.model.forgetting.target_gain_interval:
        axes.plot(across, [loss, loss], color=MUTED, linewidth=1, zorder=2.2)
    if mean.interval is not None:
        up = [scaled(end, measure) for end in mean.interval]
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
    if run.model is run.history.last:
        return
    axes.annotate(
        f"step {run.model.step:,}",
        (gain, loss),
        xytext=(-12, 4),
        textcoords="offset points",
        ha="right",
        size=FONT - 1,
        color=INK,
    )


def forgetting_figure(runs: Sequence[Run], width: float) -> Figure:
    """Above, the gain of the target language on a scale of its own; below, a row for each held-out
    language, the one that the last run forgot most on top; lines are 95% intervals. Nats per byte.

    The gain is left out where a run has no target, or the runs have several. Only languages that
    are held out in all runs have a row.
    """
    key = marks(run.name for run in runs)
    # Large hollow marks first, so that the small filled ones stay visible where both coincide.
    ordered = sorted(runs, key=lambda run: -key[run.name].size)
    targets = {run.history.target for run in runs}
    target = targets.pop() if len(targets) == 1 else None
    order = common_languages(runs)
    figure = new_figure(width, (100 if target is None else 190) + ROW * len(order))
    if target is not None:
        heights = [ROW, ROW * len(order)]
        above, below = figure.subplots(2, 1, height_ratios=heights)
        gains = {run.name: [_gain(run.model)] for run in ordered}
        spans = {run.name: [run.model.forgetting.target_gain_interval] for run in ordered}
        dot_rows(above, [language_label(target)], gains, key, spans)
        above.set_xlabel("gain: fall of the loss, nats per byte →")
        above.set_title("target language, trained on", loc="left", size=FONT, color=INK)
        below.set_title("held-out languages, only watched", loc="left", size=FONT, color=INK)
    else:
        below = figure.add_subplot()
    losses = {run.name: [run.model.loss(language) for language in order] for run in ordered}
    values = {name: [loss.value for loss in of_run] for name, of_run in losses.items()}
    bands = {name: [loss.interval for loss in of_run] for name, of_run in losses.items()}
    dot_rows(below, [language_label(language) for language in order], values, key, bands)
    below.set_xlabel("forgotten: rise of the loss, nats per byte →")
    legend(figure, key)
    return figure


def common_languages(runs: Sequence[Run]) -> list[str]:
    """Those held out in all runs, the one that the last run forgot most first."""
    *others, last = [run.model.forgetting.languages for run in runs]
    common = [language for language in last if all(language in held_out for held_out in others)]
    return sorted(common, key=lambda language: -last[language].delta_nll_per_byte)
