"""The figures of the page of variants: which of them are drawn where, also as files."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from freezetrain.evaluation.frontier_choice import at_main_gain, in_order
from freezetrain.report.plots.frontier import frontier_figure

Results = Mapping[str, Any]
Draw = Callable[[float], Figure]  # width in pixels of the page → figure
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
