"""The figures of the page of the paper: also those that are files, and in TensorBoard."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure

from freezetrain.analysis.figures import (
    concentration_figure,
    overlap_figures,
    relative_selectivity_figure,
    rises_figure,
    selectivity_figure,
)
from freezetrain.formats import exact_percent, language_label
from freezetrain.paper.results import KINDS, core_of, of_ratio, ratios_of
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


def draw_all(results: Mapping[str, Any], folder: Path) -> None:
    """The figures of the paper's page: files in ``pictures/``, images in ``tensorboard/``.

    ``results`` as ``render_paper`` takes them. Raises what ``save_pictures`` raises.
    """
    figures = paper_figures(results)
    save_pictures(figures, folder / FOLDER)
    to_tensorboard(figures, folder / BOARD)


def removal_figure(of: Mapping[str, Any], width: float) -> Figure:
    """``of["found"]``, as ``of_ratio`` gives it: a row a language, its rise by each kind of region.

    Lines are the spread over random regions; languages in ``of["starred"]`` have a star.
    """
    found = of["found"]
    return rises_figure(
        {name: _of_languages(one, "rise") for name, one in found.items()},
        width,
        "nats",
        of["starred"],
        {name: _of_languages(one, "spread") for name, one in found.items()},
    )


def dimensions_figure(ablated: Mapping[str, Any], width: float) -> Figure:
    """A row a language: without the fullest rows and columns, and without as many random ones.

    Of several random draws the mean, and their spread (standard deviation) as a line.
    """
    fullest, draws = (_rises(ablated["fullest"]), [_rises(one) for one in ablated["random"]])
    by_region, spreads = {"fullest": fullest}, {}
    if draws:
        by_region["random"] = {code: fmean(one[code] for one in draws) for code in fullest}
    if len(draws) > 1:
        spreads["random"] = {code: stdev(one[code] for one in draws) for code in fullest}
    return rises_figure(by_region, width, "nats", spreads=spreads)


def _rises(one: Mapping[str, Any]) -> dict[str, float]:
    return _of_languages(one, "rise")


def _of_languages(one: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {code: values[key] for code, values in one["languages"].items()}


def ratios_figure(summary: Sequence[Mapping[str, Any]], width: float) -> Figure:
    """The mean rise over languages against the share of weights removed, a line a kind."""
    selected = [one for one in summary if one["ratio"] is not None]
    kinds = [kind for kind in KINDS if any(one["kind"] == kind for one in selected)]
    chosen = marks(kinds)
    figure = new_figure(width, 260)
    axes = figure.add_subplot()
    dress(axes, grid="y")
    axes.axhline(0, color=MUTED, linewidth=1, zorder=1.5)
    for kind in kinds:
        of_kind = sorted(
            (one for one in selected if one["kind"] == kind), key=lambda one: one["ratio"]
        )
        places, means = [one["ratio"] for one in of_kind], [one["mean_rise"] for one in of_kind]
        axes.plot(places, means, linewidth=1.5, label=kind, **chosen[kind].options())
        for one in of_kind:
            if one["spread"] is not None:
                ends = [one["mean_rise"] - one["spread"], one["mean_rise"] + one["spread"]]
                axes.plot([one["ratio"]] * 2, ends, color=chosen[kind].colour, linewidth=1.2)
    axes.set_xticks(sorted({one["ratio"] for one in selected}))
    percents(axes.xaxis)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_locator(ticks(6))
    axes.set_xlabel("share of each matrix’s weights that is removed")
    axes.set_title("↑ mean rise of the loss, nats per byte", loc="left", size=FONT, color=INK)
    legend(figure, chosen, line=True)
    return figure


OBSERVED, CHANCE = "observed", "by chance"

_MARKS = {OBSERVED: KNOWN["top"], CHANCE: KNOWN["random"]}


def halves_figure(found: Mapping[str, Sequence], width: float) -> Figure:
    """Jaccard of the regions of two halves of each language's texts, beside what chance gives.

    ``found``: ``names``, ``jaccard`` and ``expected``, each of as many; most alike on top.
    """
    places = sorted(range(len(found["names"])), key=lambda place: -found["jaccard"][place])
    figure = new_figure(width, 100 + ROW * len(places))
    axes = figure.add_subplot()
    values = {
        label: [found[key][place] for place in places]
        for label, key in ((OBSERVED, "jaccard"), (CHANCE, "expected"))
    }
    dot_rows(axes, [language_label(found["names"][place]) for place in places], values, _MARKS)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("Jaccard index →")
    legend(figure, _MARKS)
    return figure


SERIES = {"weights": "chosen", "random": "random"}

_WEIGHT_MARKS = {"chosen": KNOWN["top"], "random": KNOWN["random"]}


def weights_figure(found: Mapping[str, Any], width: float) -> Figure:
    """The mean rise of the loss over languages, in nats per byte, against the rank of the damage.

    ``found``: results of `freezetrain perturb`.
    """
    figure = new_figure(width, 260)
    axes = figure.add_subplot()
    dress(axes, grid="y")
    axes.axhline(0, color=MUTED, linewidth=1, zorder=1.5)
    chosen = {label: _WEIGHT_MARKS[label] for key, label in SERIES.items() if found.get(key)}
    for key, label in SERIES.items():
        rises = sorted((one["mean_rise"] for one in found.get(key) or ()), reverse=True)
        if rises:
            ranks = range(1, len(rises) + 1)
            axes.plot(ranks, rises, linewidth=1, label=label, **_WEIGHT_MARKS[label].options())
    axes.xaxis.set_major_locator(ticks(10, integer=True))
    axes.yaxis.set_major_locator(ticks(6))
    axes.set_xlabel("rank of the weight, the most harmful first")
    axes.set_title("↑ mean rise of the loss, nats per byte", loc="left", color=MUTED, size=12)
    legend(figure, chosen, line=True)
    return figure


def paper_figures(results: Mapping[str, Any]) -> dict[str, Draw]:
    """Name, as of a file → what draws it; of each part that ``results`` has.

    ``results``: as ``render_paper`` takes them.
    """
    found: dict[str, Draw] = {}
    scored = (results.get("languages") or {}).get("core") or ()
    summary = (results.get("ablation") or {}).get("summary") or []
    for ratio in ratios_of(summary):
        values = {"found": of_ratio(summary, ratio), "starred": scored}
        found[removal_name(ratio)] = partial(removal_figure, values)
    if len([ratio for ratio in ratios_of(summary) if ratio is not None]) > 1:
        found["ratios"] = partial(ratios_figure, summary)
    for change, one in (results.get("weights") or {}).items():
        if one and one["weights"]:
            found[f"weights-{change}"] = partial(weights_figure, one)
    if dimensions := results.get("dimensions"):
        found |= _of_dimensions(dimensions)
    if selectivity := results.get("selectivity"):
        found["selectivity"] = partial(selectivity_figure, selectivity)
        found["selectivity-relative"] = partial(relative_selectivity_figure, selectivity)
    for name, one in (results.get("overlap") or {}).items():
        if name == "halves" and one:
            found["halves"] = partial(halves_figure, one)
        elif one:
            found |= overlap_figures(one, f"-{name.replace(' ', '-')}")
    return found


def removal_name(ratio: float | None) -> str:
    """``removal-1`` for 0.01, ``removal-files`` for regions that were given as files."""
    return "removal-files" if ratio is None else f"removal-{exact_percent(ratio).rstrip('%')}"


def _of_dimensions(dimensions: Mapping[str, Any]) -> dict[str, Draw]:
    figures: dict[str, Draw] = {}
    if dimensions["regions"] and dimensions["matrices"] and dimensions["layers"]:
        shown = dict(dimensions["regions"][core_of(dimensions)])
        shown |= {key: dimensions[key] for key in ("top", "matrices", "layers")}
        figures["concentration"] = partial(concentration_figure, shown)
    if ablated := dimensions.get("ablated"):
        figures["dimensions-removed"] = partial(dimensions_figure, ablated)
    return figures
