"""The frontier: what the target gained against what was lost, a curve a variant."""

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from freezetrain.compare.curves import MEASURES, Curve, Point, curves
from freezetrain.compare.frontier import at_main_gain, in_order
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

Results = Mapping[str, Any]

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
    results: Results, names: Sequence[str], width: float, *, ground: str | None = None
) -> Figure:
    """Mean and worst loss of ``names`` against the gain of the target, in nats per byte.

    A line joins the means over seeds in order of learning rate; faint marks are single runs. The
    reference is bold; dashed is the main gain. ``results``: as ``render_compare`` takes them;
    ``width`` in pixels; ``ground``: a colour, None for the page's.
    """
    reference = results["comparison"]["reference"]
    chosen = variant_marks(names, reference)
    columns = 2 if width > WIDE else 1
    figure = new_figure(width, 60 + 300 * (2 // columns) + 20 * -(-len(names) // (2 * columns)))
    if ground is not None:
        figure.patch.set(facecolor=ground, alpha=1)
    parts = figure.subplots(2 // columns, columns, squeeze=False).flat
    found = curves(results["runs"])
    for measure, axes in zip(MEASURES, parts, strict=True):
        dress(axes, grid="both")
        for name, mark in chosen.items():
            _draw(axes, found.get(name, {}), measure, mark, 2.6 if name == reference else 1.5)
        _finish(axes, results, _losses(found, names, measure), 5)
        axes.set_title(f"↑ {_TITLES[measure]}", loc="left", size=FONT, color=INK)
        axes.set_xlabel(f"gain of {language_name(results['target'])}, nats per byte →"[:60])
    legend(figure, chosen, line=True)
    return figure


def frontier_panel(results: Results, names: Sequence[str]) -> Figure:
    """Mean loss of a few variants, with the reference in grey; all panels share their scales."""
    reference = results["comparison"]["reference"]
    found = curves(results["runs"])
    figure = new_figure(*PANEL)
    axes = figure.add_subplot()
    dress(axes, grid="both")
    if of_reference := mean_curve(found.get(reference, {})):
        gains, losses = zip(*((point.gain, point.mean) for point in of_reference), strict=True)
        axes.plot(gains, losses, color=MUTED, linewidth=2.6, alpha=0.5, marker="o", markersize=4)
    for name, mark in variant_marks(names, reference).items():
        _draw(axes, found.get(name, {}), "mean", mark, 1.5)
    everything = [point for of in found.values() for curve in of.values() for point in curve]
    if everything:
        across = [point.gain for point in everything]
        room = 0.04 * (max(across) - min(across)) or 0.1
        axes.set_xlim(min(across) - room, max(across) + room)
        up = [point.mean for point in everything]
        if min(up) > 0:
            axes.set_ylim(min(up) / 1.1, max(up) * 1.1)
        else:
            room = 0.05 * (max(up) - min(up)) or 0.1
            axes.set_ylim(min(up) - room, max(up) + room)
    _finish(axes, results, [point.mean for point in everything], 5)
    return figure


def mean_curve(of_seeds: Mapping[int, Curve]) -> Curve:
    """The mean over seeds of what each learning rate gave."""
    by_rate: dict[float, list[Point]] = {}
    for curve in of_seeds.values():
        for point in curve:
            by_rate.setdefault(point.learning_rate, []).append(point)
    return [
        Point(rate, *(fmean(values) for values in list(zip(*points, strict=True))[1:]))
        for rate, points in sorted(by_rate.items())
    ]


def _draw(
    axes: Axes, of_seeds: Mapping[int, Curve], measure: str, mark: Mark, linewidth: float
) -> None:
    means = mean_curve(of_seeds)
    if len(of_seeds) > 1:
        single = [point for curve in of_seeds.values() for point in curve]
        axes.plot(
            [point.gain for point in single],
            [getattr(point, measure) for point in single],
            linestyle="none",
            alpha=_FADED,
            **mark.options() | {"markersize": 0.6 * mark.size, "markeredgewidth": 0.8},
        )
    axes.plot(
        [point.gain for point in means],
        [getattr(point, measure) for point in means],
        linewidth=linewidth,
        **mark.options(),
    )


def _losses(
    found: Mapping[str, Mapping[int, Curve]], names: Sequence[str], measure: str
) -> list[float]:
    return [
        getattr(point, measure)
        for name in names
        for curve in found.get(name, {}).values()
        for point in curve
    ]


def _finish(axes: Axes, results: Results, losses: Sequence[float], most: int) -> None:
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
    gain = results["comparison"]["gain"]
    if gain is not None:
        axes.axvline(gain, color=MUTED, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1.6)


BEST = 6  # variants beside the reference in the main figure

TOGETHER = 5  # variants of a small panel


def compare_figures(results: Results) -> dict[str, Draw]:
    """Name, as of a file → what draws it. ``results``: as ``render_compare`` takes them."""
    return {"frontier": partial(frontier_figure, results, main_variants(results))}


def main_variants(results: Results) -> list[str]:
    """The reference, then the ``BEST`` that lose least on average at the main gain, best first.

    Where nothing can be compared, the first of the recipe.
    """
    comparison = results["comparison"]
    found = at_main_gain(comparison)
    order = [name for name in in_order(found) if found[name]["mean"]["loss"] is not None]
    order = order or list(results["variants"])
    others = [name for name in order if name != comparison["reference"]]
    return [comparison["reference"], *others[:BEST]]


def panels(results: Results) -> list[list[str]]:
    """Groups of ``TOGETHER`` variants in the recipe's order, without the reference.

    Empty where the main figure has them all.
    """
    reference = results["comparison"]["reference"]
    names = [name for name in results["variants"] if name != reference]
    if set(names) <= set(main_variants(results)):
        return []
    return [names[first : first + TOGETHER] for first in range(0, len(names), TOGETHER)]
