"""The page of variants of further training: which of them keep other languages at equal gain."""

import os
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from freezetrain.report import compare_sentences, compare_tables, run_tables
from freezetrain.report.compare_figures import compare_figures, main_variants, panels
from freezetrain.report.page import drawn, write_page
from freezetrain.report.plots import frontier_panel, key_figure, variant_marks
from freezetrain.report.settings import flat
from freezetrain.report.style import to_svg

Results = Mapping[str, Any]


def render_compare(results: Results, path: str | os.PathLike[str]) -> None:
    """Write the page of ``results`` to ``path``, whole or not at all; an older one is replaced.

    ``results``, as `freezetrain compare` leaves them: ``model``, ``target``, ``languages``,
    ``variants`` (name → ``region``, ``frozen``, ``changes``, ``trained_on_old``, ``reads_old``),
    ``runs``, ``comparison`` (of :func:`compare_variants`), ``settings``, ``machine`` and
    ``seconds``. The page loads nothing. The same results give the same bytes. Raises ``UserError``
    if the path cannot be written to.
    """
    figures = {name: drawn(name, draw) for name, draw in compare_figures(results).items()}
    write_page(
        path,
        "compare.html.j2",
        results=results,
        plots=figures,
        shown=main_variants(results),
        panels=_panels(results),
        say={
            "introduction": compare_sentences.introduction(results),
            "seen": compare_sentences.seen(results),
            "recommended": compare_sentences.recommended(results),
            "made": compare_sentences.made(results),
        },
        tables=_tables(results),
    )


def _panels(results: Results) -> list[dict[str, Any]]:
    """Of each small panel: its variants with their marks, and the figure."""
    reference = results["comparison"]["reference"]
    found = []
    for place, names in enumerate(panels(results)):
        keys = [
            (name, Markup(to_svg(key_figure(mark), f"key-{place}-{n}")))
            for n, (name, mark) in enumerate(variant_marks(names, reference).items())
        ]
        figure = Markup(to_svg(frontier_panel(results, names), f"panel-{place}"))
        found.append({"names": names, "key": keys, "svg": figure})
    return found


def _tables(results: Results) -> dict[str, Any]:
    compared = bool(results["comparison"]["at"])
    run = {"name": results["model"]["name"], "settings": flat(results["settings"])}
    return {
        "equal": compare_tables.equal_gain_table(results) if compared else None,
        "gains": compare_tables.gains_table(results) if compared else None,
        "languages": compare_tables.languages_table(results, main_variants(results))
        if compared
        else None,
        "variants": compare_tables.variants_table(results),
        "runs": compare_tables.runs_table(results),
        "failed": compare_tables.failed_table(results),
        "settings": run_tables.settings_table([run], differing=False),
    }
