"""What every language loses when a region is set to zero."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from freezetrain.report.languages import language_label
from freezetrain.report.plots.rows import ROW, dot_rows
from freezetrain.report.style import WIDE, legend, marks, new_figure

NOTHING = "nothing"
Rises = Mapping[str, Mapping[str, float]]  # what is zeroed → language → rise of its loss


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
    return rises_figure(rises(results["ablation"]), width, "bits", results["score_languages"])


def rises_figure(
    by_region: Rises,
    width: float,
    unit: str,
    starred: Sequence[str] = (),
    spreads: Mapping[str, Mapping[str, float | None]] | None = None,
) -> Figure:
    """A row a language, largest rise under the first region on top, in ``unit`` per byte.

    ``spreads``: lines of so much to either side of a region's rises.
    """
    first = next(iter(by_region.values()))
    order = sorted(first, key=lambda language: -first[language])
    labels = [language_label(code) + (" *" if code in starred else "") for code in order]
    figure = new_figure(width, 100 + ROW * len(order))
    axes = figure.add_subplot()
    chosen = marks(by_region)
    values = {name: [rise[code] for code in order] for name, rise in by_region.items()}
    around = {
        name: [_around(by_region[name][code], spread.get(code)) for code in order]
        for name, spread in (spreads or {}).items()
    }
    dot_rows(axes, labels, values, chosen, around)
    axes.tick_params(axis="x", labeltop=True)
    axes.set_xlabel(f"rise of the loss, {unit} per byte →")
    legend(figure, {f"{name} zeroed" if width > WIDE else name: chosen[name] for name in chosen})
    return figure


def _around(value: float, spread: float | None) -> tuple[float, float] | None:
    return None if spread is None else (value - spread, value + spread)
