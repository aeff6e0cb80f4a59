"""Variants as plain files: their runs as CSV, their losses at equal gain as Markdown."""

import os
from collections.abc import Mapping
from typing import Any

from freezetrain.report.compare_tables import equal_gain_table
from freezetrain.report.comparison import markdown, write_csv
from freezetrain.report.tables import Cell

Results = Mapping[str, Any]
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
