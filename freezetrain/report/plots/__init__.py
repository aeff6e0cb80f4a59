"""The plots: each takes results or runs and a width in pixels of the page, and gives a figure."""

from freezetrain.report.plots.ablation import ablation_figure
from freezetrain.report.plots.concentration import concentration_figure
from freezetrain.report.plots.course import course_figure
from freezetrain.report.plots.entries import entries_figure
from freezetrain.report.plots.forgetting import common_languages, forgetting_figure
from freezetrain.report.plots.panels import key_figure, panel_figure
from freezetrain.report.plots.plane import plane_figure

__all__ = [
    "ablation_figure",
    "common_languages",
    "concentration_figure",
    "course_figure",
    "entries_figure",
    "forgetting_figure",
    "key_figure",
    "panel_figure",
    "plane_figure",
]
