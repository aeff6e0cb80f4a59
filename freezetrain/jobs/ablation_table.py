"""What removing regions did, summed up: over random seeds, and as tables for the terminal."""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from statistics import fmean, stdev
from typing import Any

from rich.markup import escape
from rich.table import Table

from freezetrain.evaluation import Figures
from freezetrain.evaluation.figures import finite_or_none
from freezetrain.jobs.alone import LanguageFigures, rises

NOTHING = "nothing"  # what is zeroed where the model is evaluated as it is


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation (n - 1) over seeds; None for a single or an infinite value."""
    known = len(values) > 1 and all(map(isfinite, values))  # perplexities may be infinite
    return fmean(values), stdev(values) if known else None


def effect(figures: Mapping[str, LanguageFigures], names: Sequence[str]) -> dict[str, Any]:
    """What zeroing each of ``names`` did on average, ready for JSON.

    ``mean_rise``: of the NLL over nothing zeroed, nats per byte, mean over languages, then over
    ``names``; ``spread`` its standard deviation over ``names``. The same of each language.
    """
    before = figures[NOTHING]
    by_name = [rises(before, figures[name]) for name in names]
    mean, spread = mean_and_spread([fmean(rise.values()) for rise in by_name])
    languages = {}
    for language in before:
        rise, of_language = mean_and_spread([rise[language] for rise in by_name])
        perplexity = fmean(figures[name][language].perplexity for name in names)
        languages[language] = {
            "rise": rise,
            "spread": of_language,
            "perplexity": finite_or_none(perplexity),
        }
    return {"mean_rise": mean, "spread": spread, "languages": languages}


def as_table(
    figures: Mapping[str, LanguageFigures],
    columns: Mapping[str, Sequence[str]] | None = None,
    title: str = "with a region set to zero",
) -> Table:
    """Languages × what is zeroed: perplexity and bits per byte, with the mean rise below.

    ``columns``: heading -> regions whose mean it shows, with the spread over them where there are
    several. None: each region by itself.
    """
    if columns is None:
        columns = {name: [name] for name in figures if name != NOTHING}
    groups: dict[str, Sequence[str]] = {NOTHING: [NOTHING], **columns}
    table = Table(title=f"{escape(title)}: perplexity, then bits per byte", title_justify="left")
    table.add_column("language")
    for unit in ("", ",\nbits/byte"):
        for heading in groups:
            table.add_column(escape(heading) + unit, justify="right")
    for language in figures[NOTHING]:
        cells = []
        for read, digits in (_PERPLEXITY, _BITS):
            for names in groups.values():
                values = [read(figures[name][language]) for name in names]
                cells.append(_cell(values, digits))
        table.add_row(escape(language), *cells)
    table.add_section()
    means = [
        _cell([fmean(rises(figures[NOTHING], figures[name]).values()) for name in names], "+.4f")
        for names in groups.values()
    ]
    table.add_row("mean rise,\nnats/byte", *[""] * len(groups), *means)
    return table


_Reading = tuple[Callable[[Figures], float], str]
_PERPLEXITY: _Reading = (lambda figures: figures.perplexity, ".4g")
_BITS: _Reading = (lambda figures: figures.bits_per_byte, ".3f")


def _cell(values: Sequence[float], digits: str) -> str:
    mean, spread = mean_and_spread(values)
    shown = f"{mean:{digits}}"
    return shown if spread is None else f"{shown}\n±{spread:.2g}"
