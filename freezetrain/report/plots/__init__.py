"""The plots: each takes the results and a width in pixels of the page, and gives a figure."""

from freezetrain.report.plots.ablation import ablation_figure
from freezetrain.report.plots.concentration import concentration_figure
from freezetrain.report.plots.course import course_figure
from freezetrain.report.plots.entries import entries_figure
from freezetrain.report.plots.forgetting import forgetting_figure

__all__ = [
    "ablation_figure",
    "concentration_figure",
    "course_figure",
    "entries_figure",
    "forgetting_figure",
]
