"""The figures of the paper's page: also those that are files, and in TensorBoard."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from freezetrain.report import plots
from freezetrain.report.numbers import exact_percent
from freezetrain.report.paper_reading import core_of
from freezetrain.report.plots.removal import of_ratio, ratios_of

Draw = Callable[[float], Figure]  # width in pixels of the page → figure
_EVEN = 0.02  # shares that differ by less than so much of the largest one are alike


def paper_figures(results: Mapping[str, Any]) -> dict[str, Draw]:
    """Name, as of a file → what draws it; of each part that ``results`` has.

    ``results``: as ``render_paper`` takes them.
    """
    found: dict[str, Draw] = {}
    scored = (results.get("languages") or {}).get("core") or ()
    summary = (results.get("ablation") or {}).get("summary") or []
    for ratio in ratios_of(summary):
        values = {"found": of_ratio(summary, ratio), "starred": scored}
        found[removal_name(ratio)] = partial(plots.removal_figure, values)
    if len([ratio for ratio in ratios_of(summary) if ratio is not None]) > 1:
        found["ratios"] = partial(plots.ratios_figure, summary)
    for change, one in (results.get("weights") or {}).items():
        if one and one["weights"]:
            found[f"weights-{change}"] = partial(plots.weights_figure, one)
    if dimensions := results.get("dimensions"):
        found |= _of_dimensions(dimensions)
    if selectivity := results.get("selectivity"):
        found["selectivity"] = partial(plots.selectivity_figure, selectivity)
        found["selectivity-relative"] = partial(plots.relative_selectivity_figure, selectivity)
    for name, one in (results.get("overlap") or {}).items():
        if name == "halves" and one:
            found["halves"] = partial(plots.halves_figure, one)
        elif one:
            found |= overlap_figures(one, f"-{name.replace(' ', '-')}")
    return found


def removal_name(ratio: float | None) -> str:
    """``removal-1`` for 0.01, ``removal-files`` for regions that were given as files."""
    return "removal-files" if ratio is None else f"removal-{exact_percent(ratio).rstrip('%')}"


def overlap_figures(found: Mapping[str, Any], suffix: str = "") -> dict[str, Draw]:
    """Jaccard of several regions; their shares by layer and kind, where these differ."""
    figures: dict[str, Draw] = {}
    if len(found.get("jaccard") or ()) > 1:
        figures[f"jaccard{suffix}"] = partial(plots.jaccard_figure, found)
    if _differ(found["by_layer"]):
        title = "↑ share of the layer’s weights that is in the region"
        draw = partial(plots.layers_figure, found["by_layer"], title=title)
        figures[f"layers{suffix}"] = draw
    if _differ(found["by_kind"]):
        figures[f"kinds{suffix}"] = partial(plots.kinds_figure, found["by_kind"])
    return figures


def _differ(shares: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether a picture tells more than the one number that all shares are."""
    every = [share for of_region in shares.values() for share in of_region.values()]
    return bool(every) and max(every) - min(every) > _EVEN * max(every)


def _of_dimensions(dimensions: Mapping[str, Any]) -> dict[str, Draw]:
    figures: dict[str, Draw] = {}
    if dimensions["regions"] and dimensions["matrices"] and dimensions["layers"]:
        shown = dict(dimensions["regions"][core_of(dimensions)])
        shown |= {key: dimensions[key] for key in ("top", "matrices", "layers")}
        figures["concentration"] = partial(plots.concentration_figure, shown)
    if ablated := dimensions.get("ablated"):
        figures["dimensions-removed"] = partial(plots.dimensions_figure, ablated)
    return figures
