"""The plane: what the target language gained against what the held-out languages lost."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from freezetrain.errors import UserError
from freezetrain.report.losses import (
    NATS,
    UNITS,
    limit,
    mean_interval,
    mean_loss,
    measure_of,
    model_evaluation,
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

_MARKED = 40  # evaluations of a run that are all marked; of more, every so many


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
    every = -(-len(places) // _MARKED)
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
