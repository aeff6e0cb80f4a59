"""The plots: each takes results or runs and a width in pixels of the page, and gives a figure."""

from freezetrain.report.plots.ablation import ablation_figure, rises_figure
from freezetrain.report.plots.concentration import concentration_figure
from freezetrain.report.plots.course import course_figure
from freezetrain.report.plots.entries import entries_figure
from freezetrain.report.plots.forgetting import common_languages, forgetting_figure
from freezetrain.report.plots.frontier import frontier_figure, frontier_panel, variant_marks
from freezetrain.report.plots.halves import halves_figure
from freezetrain.report.plots.layers import layers_figure
from freezetrain.report.plots.matrices import (
    jaccard_figure,
    kinds_figure,
    relative_selectivity_figure,
    selectivity_figure,
)
from freezetrain.report.plots.panels import key_figure, panel_figure
from freezetrain.report.plots.plane import plane_figure
from freezetrain.report.plots.removal import dimensions_figure, ratios_figure, removal_figure
from freezetrain.report.plots.weights import weights_figure

__all__ = [
    "ablation_figure",
    "common_languages",
    "concentration_figure",
    "course_figure",
    "dimensions_figure",
    "entries_figure",
    "forgetting_figure",
    "frontier_figure",
    "frontier_panel",
    "halves_figure",
    "jaccard_figure",
    "key_figure",
    "kinds_figure",
    "layers_figure",
    "panel_figure",
    "plane_figure",
    "ratios_figure",
    "relative_selectivity_figure",
    "removal_figure",
    "rises_figure",
    "selectivity_figure",
    "variant_marks",
    "weights_figure",
]
