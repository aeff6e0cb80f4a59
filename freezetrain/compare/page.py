"""The page of a comparison."""

import os
from typing import Any

from markupsafe import Markup

from freezetrain.compare import tables
from freezetrain.compare.figures import (
    compare_figures,
    frontier_panel,
    main_variants,
    panels,
    variant_marks,
)
from freezetrain.compare.findings import findings, precise, rate_text, recommendations
from freezetrain.compare.results import CompareResults
from freezetrain.formats import seconds
from freezetrain.report.page import drawn, settings_table, write_page
from freezetrain.report.run_plots import key_figure
from freezetrain.report.style import to_svg
from freezetrain.tables import Table, facts_table, markdown, to_markdown


def render_compare(results: CompareResults, path: str | os.PathLike[str]) -> None:
    """Write the page of ``results`` to ``path``, whole or not at all; an older one is replaced.

    The page loads nothing. The same results give the same bytes. Raises ``UserError`` if the path
    cannot be written to.
    """
    shown = main_variants(results)
    compared = results.comparison.main is not None
    write_page(
        path,
        "compare/page.html.j2",
        results=results,
        plots={name: drawn(name, draw) for name, draw in compare_figures(results).items()},
        shown=shown,
        panels=_panels(results),
        findings=findings(results),
        recommendations=recommendations(results),
        about=facts_table("What was compared", _about(results)),
        time=seconds(results.seconds),
        equal_gain=tables.equal_gain_table(results) if compared else None,
        languages=tables.languages_table(results, shown) if compared else None,
        gains=tables.gains_table(results) if compared else None,
        failed=tables.failed_table(results),
        variants=tables.variants_table(results),
        runs=tables.runs_table(results),
        settings=settings_table(results.settings),
    )


def _about(results: CompareResults) -> dict[str, str]:
    """What was compared, on what."""
    rates = sorted({run.learning_rate for run in results.runs})
    gain = results.comparison.gain
    return {
        "Model": f"{results.model.name}, {results.model.parameters:,} weights",
        "Held-out languages": f"{len(results.held_out)}",
        "Variants": f"{len(results.variants)}",
        "Learning rates": ", ".join(map(rate_text, rates)),
        "Seeds": f"{len({run.seed for run in results.runs})}",
        "Runs": f"{len(results.runs)}",
        "Compared at a gain of": "–" if gain is None else f"{precise(gain)} nats per byte",
    }


def _panels(results: CompareResults) -> list[dict[str, Any]]:
    """Of each small panel: its variants with their marks, and the figure."""
    drawn_panels = []
    for place, names in enumerate(panels(results)):
        marks = variant_marks(names, results.comparison.reference)
        keys = [
            (name, Markup(to_svg(key_figure(mark), f"key-{place}-{number}")))
            for number, (name, mark) in enumerate(marks.items())
        ]
        figure = Markup(to_svg(frontier_panel(results, names), f"panel-{place}"))
        drawn_panels.append({"names": names, "key": keys, "svg": figure})
    return drawn_panels


def variants_markdown(results: CompareResults) -> str:
    """The table at equal gain, its intervals in brackets; why there is none where there is none."""
    if (why := results.comparison.why_none) is not None:
        return f"Nothing can be compared at equal gain: {markdown(why)}.\n"
    table: Table = tables.equal_gain_table(results)
    title = table.title.replace(" below", "")
    return f"{to_markdown(table)}\n{markdown(title)}.\n".replace("\u00a0", " ")
