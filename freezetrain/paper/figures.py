"""The figures of the paper's page, which are also files and images in TensorBoard."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

from matplotlib.figure import Figure

from freezetrain.analysis.ablate import RemovalEffect
from freezetrain.analysis.dimensions import ZeroedDimensions
from freezetrain.analysis.effects import Effect, LanguageEffect
from freezetrain.analysis.figures import (
    concentration_figure,
    effects_figure,
    overlap_figures,
    relative_selectivity_figure,
    selectivity_figure,
)
from freezetrain.analysis.perturb import Damage, Perturbations
from freezetrain.formats import exact_percent, language_label
from freezetrain.paper.results import KINDS, Halves, PaperResults
from freezetrain.report.charts import ROW, dot_rows
from freezetrain.report.page import Draw
from freezetrain.report.pictures import BOARD, FOLDER, save_pictures, to_tensorboard
from freezetrain.report.style import (
    FONT,
    INK,
    KNOWN,
    MUTED,
    dress,
    legend,
    marks,
    new_figure,
    percents,
    ticks,
)


def draw_all(results: PaperResults, folder: Path) -> None:
    """Leave the figures in ``pictures/`` and ``tensorboard/``. Raises as ``save_pictures``."""
    figures = paper_figures(results)
    save_pictures(figures, folder / FOLDER)
    to_tensorboard(figures, folder / BOARD)


def paper_figures(results: PaperResults) -> dict[str, Draw]:
    """Name, as of a file → what draws it; of each part that ``results`` has."""
    figures: dict[str, Draw] = {}
    removed = results.removed
    for ratio, effects in removed.items():
        draw = partial(effects_figure, effects, starred=results.languages.core)
        figures[removal_name(ratio)] = draw
    if len(removed) > 1:
        figures["ratios"] = partial(ratios_figure, removed)
    for name, changed in results.changed.items():
        figures[f"weights-{name}"] = partial(weights_figure, changed)
    if dimensions := results.dimensions:
        if dimensions.regions and dimensions.matrices and dimensions.layers:
            figures["concentration"] = partial(
                concentration_figure,
                dimensions.regions[dimensions.shown],
                dimensions.layers,
                dimensions.matrices,
                dimensions.top,
            )
        if dimensions.ablated:
            figures["dimensions-removed"] = partial(dimensions_figure, dimensions.ablated)
    if results.selectivity:
        figures["selectivity"] = partial(selectivity_figure, results.selectivity)
        figures["selectivity-relative"] = partial(relative_selectivity_figure, results.selectivity)
    for name in ("languages", "samples", "methods", "whole_model"):
        if overlap := getattr(results.overlap, name):
            figures |= overlap_figures(overlap, f"-{name.replace('_', '-')}")
    if results.overlap.halves:
        figures["halves"] = partial(halves_figure, results.overlap.halves)
    return figures


def removal_name(ratio: float) -> str:
    """``removal-1`` for 0.01"""
    return f"removal-{exact_percent(ratio).rstrip('%')}"


def dimensions_figure(zeroed: ZeroedDimensions, width: float) -> Figure:
    """A row a language: without the fullest rows and columns, and without as many random ones."""
    effects = {"fullest": zeroed.fullest}
    if zeroed.random:
        effects["random"] = _mean_of(zeroed.random)
    return effects_figure(effects, width)


def _mean_of(draws: Sequence[Effect]) -> Effect:
    """Mean of several draws, with their standard deviation as spread."""

    def spread(values: Sequence[float]) -> float | None:
        return stdev(values) if len(values) > 1 else None

    languages = {}
    for code in draws[0].languages:
        rises = [draw.languages[code].rise for draw in draws]
        languages[code] = LanguageEffect(fmean(rises), spread(rises), None)
    means = [draw.mean_rise for draw in draws]
    return Effect(mean_rise=fmean(means), spread=spread(means), languages=languages)


def ratios_figure(removed: Mapping[float, Mapping[str, RemovalEffect]], width: float) -> Figure:
    """The mean rise over languages against the share of weights removed, a line a kind."""
    kinds = [kind for kind in KINDS if any(kind in effects for effects in removed.values())]
    chosen = marks(kinds)
    figure = new_figure(width, 260)
    axes = figure.add_subplot()
    dress(axes, grid="y")
    axes.axhline(0, color=MUTED, linewidth=1, zorder=1.5)
    for kind in kinds:
        points = {ratio: effects[kind] for ratio, effects in removed.items() if kind in effects}
        means = [effect.mean_rise for effect in points.values()]
        axes.plot(list(points), means, linewidth=1.5, label=kind, **chosen[kind].options())
        for ratio, effect in points.items():
            if effect.spread is not None:
                ends = [effect.mean_rise - effect.spread, effect.mean_rise + effect.spread]
                axes.plot([ratio] * 2, ends, color=chosen[kind].colour, linewidth=1.2)
    axes.set_xticks(list(removed))
    percents(axes.xaxis)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_locator(ticks(6))
    axes.set_xlabel("share of each matrix’s weights that is removed")
    axes.set_title("↑ mean rise of the loss, nats per byte", loc="left", size=FONT, color=INK)
    legend(figure, chosen, line=True)
    return figure


def halves_figure(halves: Halves, width: float) -> Figure:
    """Jaccard of the regions of two halves of each language's texts, beside what chance gives.

    Most alike on top.
    """
    key = {"observed": KNOWN["top"], "by chance": KNOWN["random"]}
    places = sorted(range(len(halves.names)), key=lambda place: -halves.jaccard[place])
    figure = new_figure(width, 100 + ROW * len(places))
    axes = figure.add_subplot()
    values = {
        "observed": [halves.jaccard[place] for place in places],
        "by chance": [halves.expected[place] for place in places],
    }
    dot_rows(axes, [language_label(halves.names[place]) for place in places], values, key)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("Jaccard index →")
    legend(figure, key)
    return figure


def weights_figure(changed: Perturbations, width: float) -> Figure:
    """Mean rise of the loss over languages, nats per byte, against the rank of the damage."""
    figure = new_figure(width, 260)
    axes = figure.add_subplot()
    dress(axes, grid="y")
    axes.axhline(0, color=MUTED, linewidth=1, zorder=1.5)
    series: dict[str, list[Damage]] = {"chosen": changed.weights, "random": changed.random}
    shown = {label: damages for label, damages in series.items() if damages}
    key = {label: KNOWN["top" if label == "chosen" else "random"] for label in shown}
    for label, damages in shown.items():
        rises = sorted((damage.mean_rise for damage in damages), reverse=True)
        axes.plot(range(1, len(rises) + 1), rises, linewidth=1, label=label, **key[label].options())
    axes.xaxis.set_major_locator(ticks(10, integer=True))
    axes.yaxis.set_major_locator(ticks(6))
    axes.set_xlabel("rank of the weight, the most harmful first")
    axes.set_title("↑ mean rise of the loss, nats per byte", loc="left", color=MUTED, size=12)
    legend(figure, key, line=True)
    return figure
