"""The page of a comparison."""

import os
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from freezetrain.compare import sentences as compare_sentences
from freezetrain.compare import tables as compare_tables
from freezetrain.compare.figures import (
    compare_figures,
    frontier_panel,
    main_variants,
    panels,
    variant_marks,
)
from freezetrain.compare.tables import equal_gain_table
from freezetrain.report.page import drawn, settings_table, write_page
from freezetrain.report.run_plots import key_figure
from freezetrain.report.style import to_svg
from freezetrain.report.tables import Cell, markdown, write_csv

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
        "compare/page.html.j2",
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
    return {
        "equal": compare_tables.equal_gain_table(results) if compared else None,
        "gains": compare_tables.gains_table(results) if compared else None,
        "languages": compare_tables.languages_table(results, main_variants(results))
        if compared
        else None,
        "variants": compare_tables.variants_table(results),
        "runs": compare_tables.runs_table(results),
        "failed": compare_tables.failed_table(results),
        "settings": settings_table(results["settings"]),
    }


COLUMNS = (
    "variant",
    "learning_rate",
    "seed",
    "gain",  # of the target: base minus adapted; here and below in nats per byte
    "mean",  # loss of the held-out languages: adapted minus base
    "worst",  # of the one that lost most
    "worst_language",
    "seconds",  # of training
    "tokens",
    "failed",  # why a run gave no result
)


def write_runs_csv(results: Results, path: str | os.PathLike[str]) -> None:
    """A row a run: ``COLUMNS``, then ``delta_<language>`` of each held-out language.

    Numbers in full; what is not known is empty. ``results``: as ``render_compare`` takes them.
    Raises ``UserError`` if the path cannot be written to.
    """
    held_out = [code for code in results["languages"] if code != results["target"]]
    rows = []
    for run in results["runs"]:
        worst = run["worst"] or {}
        row = {name: run[name] for name in COLUMNS if name in run}
        row["worst"], row["worst_language"] = (
            worst.get(key) for key in ("delta_nll_per_byte", "language")
        )
        rows.append(row | {f"delta_{code}": run["languages"].get(code) for code in held_out})
    write_csv(rows, path, (*COLUMNS, *(f"delta_{code}" for code in held_out)))


def to_markdown(results: Results) -> str:
    """The table at equal gain, its intervals in brackets; why there is none where there is none."""
    if not results["comparison"]["at"]:
        return f"Nothing can be compared at equal gain: {results['comparison']['why_none']}.\n"
    table = equal_gain_table(results)
    headings = [heading for heading, span in table.groups for _ in range(span)]
    heads = [
        f"{group}, {name}" if group else name
        for group, name in zip(headings, table.columns, strict=True)
    ]
    rule = [":--" if place in table.texts else "--:" for place in range(len(heads))]
    rows = [[_written(cell) for cell in row] for row in table.rows]
    return f"{markdown([heads, rule, *rows])}\n\n{table.title.replace(' below', '')}.\n"


def _written(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return cell
    text = f"{cell.text} ({cell.note})" if cell.note else cell.text
    return text.replace("\u00a0", " ")
