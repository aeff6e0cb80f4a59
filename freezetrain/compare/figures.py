"""The frontier: what the target gained against what was lost, a curve a variant."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from freezetrain.compare.curves import Curve, curves_of
from freezetrain.compare.results import MEASURES, CompareResults, RunResult
from freezetrain.escaping import shortened, visible
from freezetrain.formats import language_name
from freezetrain.report.page import Draw
from freezetrain.report.style import (
    FONT,
    INK,
    KNOWN,
    MUTED,
    WIDE,
    Mark,
    dress,
    legend,
    marks,
    new_figure,
    ticks,
)

PANEL = (370.0, 230.0)  # px of one small panel

_TITLES = {"mean": "mean loss of held-out languages", "worst": "loss of the worst one"}

_FADED = 0.45

_NARROW = 4  # largest through smallest loss, below which 1, 2 and 5 times powers of ten are few


def variant_marks(names: Sequence[str], reference: str) -> dict[str, Mark]:
    """The mark of each variant; the reference has that of plain training."""
    plain = "plain"
    chosen = marks([plain, *(name for name in names if name != reference)])
    return {name: KNOWN[plain] if name == reference else chosen[name] for name in names}


def frontier_figure(
    results: CompareResults, names: Sequence[str], width: float, *, ground: str | None = None
) -> Figure:
    """Mean and worst loss of ``names`` against the gain of the target, in nats per byte.

    A line joins the means over seeds in order of learning rate; faint marks are single runs. The
    reference is bold; dashed is the main gain. ``width`` in pixels;
    ``ground``: a colour, None for the page's.
    """
    reference = results.comparison.reference
    chosen = variant_marks(names, reference)
    columns = 2 if width > WIDE else 1
    figure = new_figure(width, 60 + 300 * (2 // columns) + 20 * -(-len(names) // (2 * columns)))
    if ground is not None:
        figure.patch.set(facecolor=ground, alpha=1)
    parts = figure.subplots(2 // columns, columns, squeeze=False).flat
    curves = curves_of(results.runs)
    shown = [curve for name in names for curve in curves.get(name, {}).values()]
    for measure, axes in zip(MEASURES, parts, strict=True):
        dress(axes, grid="both")
        for name, mark in chosen.items():
            _draw(axes, curves.get(name, {}), measure, mark, 2.6 if name == reference else 1.5)
        _finish(axes, results, _points(shown, measure)[1], 5)
        axes.set_title(f"↑ {_TITLES[measure]}", loc="left", size=FONT, color=INK)
        target = shortened(visible(language_name(results.target)), 34)
        axes.set_xlabel(f"gain of {target}, nats per byte →")
    legend(figure, chosen, line=True)
    return figure


def frontier_panel(results: CompareResults, names: Sequence[str]) -> Figure:
    """Mean loss of a few variants, with the reference in grey; all panels share their scales."""
    reference = results.comparison.reference
    curves = curves_of(results.runs)
    figure = new_figure(*PANEL)
    axes = figure.add_subplot()
    dress(axes, grid="both")
    if reference in curves:
        gains, losses = mean_curve(curves[reference], "mean")
        axes.plot(gains, losses, color=MUTED, linewidth=2.6, alpha=0.5, marker="o", markersize=4)
    for name, mark in variant_marks(names, reference).items():
        _draw(axes, curves.get(name, {}), "mean", mark, 1.5)
    gains, losses = _points((curve for of in curves.values() for curve in of.values()), "mean")
    if gains:
        room = 0.04 * (max(gains) - min(gains)) or 0.1
        axes.set_xlim(min(gains) - room, max(gains) + room)
        room = 0.05 * (max(losses) - min(losses)) or 0.1
        logarithmic = min(losses) > 0
        low = min(losses) / 1.1 if logarithmic else min(losses) - room
        axes.set_ylim(low, max(losses) * 1.1 if logarithmic else max(losses) + room)
    _finish(axes, results, losses, 5)
    return figure


def mean_curve(curves: Mapping[int, Curve], measure: str) -> tuple[list[float], list[float]]:
    """Gains and losses that each learning rate gave, mean over seeds."""
    by_rate: dict[float, list[RunResult]] = {}
    for curve in curves.values():
        for run in curve:
            by_rate.setdefault(run.learning_rate, []).append(run)
    points = [_points([runs], measure) for _, runs in sorted(by_rate.items())]
    return [fmean(gains) for gains, _ in points], [fmean(losses) for _, losses in points]


def _points(curves: Iterable[Curve], measure: str) -> tuple[list[float], list[float]]:
    """Gains and losses of all runs of ``curves``."""
    runs = [run for curve in curves for run in curve]
    return [run.gain or 0.0 for run in runs], [getattr(run, measure) for run in runs]


def _draw(
    axes: Axes, curves: Mapping[int, Curve], measure: str, mark: Mark, linewidth: float
) -> None:
    if len(curves) > 1:
        axes.plot(
            *_points(curves.values(), measure),
            linestyle="none",
            alpha=_FADED,
            **mark.options() | {"markersize": 0.6 * mark.size, "markeredgewidth": 0.8},
        )
    axes.plot(*mean_curve(curves, measure), linewidth=linewidth, **mark.options())


def _finish(axes: Axes, results: CompareResults, losses: Sequence[float], most: int) -> None:
    """Scale, ticks, and the main gain."""
    axes.xaxis.set_major_locator(ticks(most + 1))
    if losses and min(losses) > 0:
        axes.set_yscale("log")
        few = max(losses) / min(losses) < _NARROW
        axes.yaxis.set_major_locator(ticks(most) if few else LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.axhline(0, color=MUTED, linewidth=1, zorder=1.5)
        axes.yaxis.set_major_locator(ticks(most))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}".replace("-", "−"))
    gain = results.comparison.gain
    if gain is not None:
        axes.axvline(gain, color=MUTED, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1.6)


BEST = 6  # variants beside the reference in the main figure

TOGETHER = 5  # variants of a small panel


def compare_figures(results: CompareResults) -> dict[str, Draw]:
    """Name, as of a file → what draws it."""
    return {"frontier": partial(frontier_figure, results, main_variants(results))}


def main_variants(results: CompareResults) -> list[str]:
    """The reference, then the ``BEST`` that lose least on average at the main gain, best first.

    Where nothing can be compared, the first of the recipe.
    """
    at, reference = results.comparison.main, results.comparison.reference
    ranked = [] if at is None else at.ranked()
    lose = [name for name in ranked if at and at.variants[name]["mean"].loss is not None]
    others = [name for name in lose or results.variants if name != reference]
    return [reference, *others[:BEST]]


def panels(results: CompareResults) -> list[list[str]]:
    """Groups of ``TOGETHER`` variants in the recipe's order, without the reference.

    Empty where the main figure has them all.
    """
    names = [name for name in results.variants if name != results.comparison.reference]
    if set(names) <= set(main_variants(results)):
        return []
    return [names[first : first + TOGETHER] for first in range(0, len(names), TOGETHER)]
