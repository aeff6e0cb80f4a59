"""How alike the regions of two halves of a language's texts are."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from freezetrain.report.languages import language_label
from freezetrain.report.plots.rows import ROW, dot_rows
from freezetrain.report.style import KNOWN, legend, new_figure

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
