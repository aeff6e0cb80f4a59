"""What every language loses when a region is set to zero."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from freezetrain.report.languages import language_label
from freezetrain.report.plots.rows import ROW, dot_rows
from freezetrain.report.style import WIDE, legend, marks, new_figure

NOTHING = "nothing"


def rises(ablation: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Region zeroed → language → rise of the loss over nothing zeroed, in bits per byte."""
    before = ablation[NOTHING]
    return {
        name: {
            language: after[language]["bits_per_byte"] - figures["bits_per_byte"]
            for language, figures in before.items()
        }
        for name, after in ablation.items()
        if name != NOTHING
    }


def ablation_figure(results: Mapping[str, Any], width: float) -> Figure:
    """A row a language, largest rise under the first region on top; scored languages starred."""
    by_region = rises(results["ablation"])
    first = next(iter(by_region.values()))
    order = sorted(first, key=lambda language: -first[language])
    scored = set(results["score_languages"])
    labels = [language_label(code) + (" *" if code in scored else "") for code in order]
    figure = new_figure(width, 100 + ROW * len(order))
    axes = figure.add_subplot()
    chosen = marks(by_region)
    values = {name: [rise[code] for code in order] for name, rise in by_region.items()}
    dot_rows(axes, labels, values, chosen)
    axes.tick_params(axis="x", labeltop=True)
    axes.set_xlabel("rise of the loss, bits per byte →")
    legend(figure, {f"{name} zeroed" if width > WIDE else name: chosen[name] for name in chosen})
    return figure
