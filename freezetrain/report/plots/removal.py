"""How much is lost by the share of weights that is removed: highest, lowest and random scores."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure

from freezetrain.report.plots.ablation import rises_figure
from freezetrain.report.style import (
    FONT,
    INK,
    MUTED,
    dress,
    legend,
    marks,
    new_figure,
    percents,
    ticks,
)

KINDS = ("top", "random", "bottom")


def of_ratio(summary: Sequence[Mapping[str, Any]], ratio: float | None) -> dict[str, Any]:
    """What was removed at ``ratio``, by kind; None: the regions given as files, by their names."""
    found = {_name(one): one for one in summary if one["ratio"] == ratio}
    order = [kind for kind in KINDS if kind in found] + [k for k in found if k not in KINDS]
    return {kind: found[kind] for kind in order}


def _name(one: Mapping[str, Any]) -> str:
    if one["kind"] == "file":
        return one["regions"][0]
    return one["kind"] if one["ratio"] is not None else f"random like {one['like']}"


def ratios_of(summary: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """All ratios, ascending; then None where regions were given as files."""
    known = sorted({one["ratio"] for one in summary if one["ratio"] is not None})
    return [*known, *([None] if any(one["ratio"] is None for one in summary) else [])]


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
