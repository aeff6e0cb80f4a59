"""What a comparison of models leaves for people and for spreadsheets."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from freezetrain.evaluation.benchmarks import MetricDrop, benchmarks_table
from freezetrain.evaluation.continuations import TextRow, generation_tables, text_rows
from freezetrain.files import write_text
from freezetrain.report.comparison import (
    failed_table,
    forgetting_csv,
    forgetting_markdown,
    language_rows,
    summary_table,
)
from freezetrain.report.run import Run
from freezetrain.report.runs import PAGE
from freezetrain.report.runs_page import render_runs
from freezetrain.report.style import MOST
from freezetrain.tables import Column, markdown, to_csv, to_markdown


def write_tables(runs: Sequence[Run], failed: Mapping[str, str], folder: Path) -> list[Any]:
    """Write the files for people and for spreadsheets; what to show of them."""
    rows = language_rows(runs)
    write_text(folder / "forgetting.csv", forgetting_csv(rows, failed))
    written = forgetting_markdown(rows)
    shown: list[Any] = [summary_table(rows)] if len(runs) > 1 else []
    tables = []
    benchmarks = [run.benchmarks for run in runs if run.benchmarks is not None]
    if benchmarks:
        metrics = [metric for drops in benchmarks for metric in drops.metrics]
        write_text(folder / "benchmarks.csv", to_csv(_columns(MetricDrop), metrics))
        tables.append(benchmarks_table(benchmarks))
    generations = {run.name: run.generation for run in runs if run.generation is not None}
    if generations:
        texts = [row for name, found in generations.items() for row in text_rows(name, found)]
        write_text(folder / "generation.csv", to_csv(_columns(TextRow), texts))
        tables += generation_tables(generations)
    if failed:
        tables.append(failed_table(failed))
    for table in tables:
        written += f"\n{markdown(table.title)}.\n\n{to_markdown(table)}"
        shown.append(table)
    write_text(folder / "forgetting.md", written)
    if not runs:
        return shown
    render_runs(runs[-MOST:], folder / PAGE, failed)
    part = f", of the last {MOST} of {len(runs)} models" if len(runs) > MOST else ""
    return [*shown, f"report: {folder / PAGE}{part}"]


def _columns(row: type[Any]) -> list[Column]:
    """A column for each field, of its name."""
    return [Column(field.name, field.name) for field in fields(row)]
