"""Benchmarks of several models as plain rows, and as a table for the terminal or for Markdown."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from freezetrain.evaluation.results import write_whole

COLUMNS = (
    "task",
    "metric",
    "counts",
    "higher_is_better",
    "model",
    "base_value",
    "base_standard_error",
    "value",
    "standard_error",
    "relative_drop",
)


def benchmark_rows(benchmarks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each task, metric and model, with the keys ``COLUMNS``.

    ``benchmarks`` as ``evaluation.benchmarks.compared`` makes them, one for each model. ``counts``
    says whether the metric is the one whose drop goes into the mean.
    """
    return [
        {
            "task": task,
            "metric": metric,
            "counts": metric == found["metric"],
            "higher_is_better": of_metric["higher_is_better"],
            "model": model,
            "base_value": of_metric["base"]["value"],
            "base_standard_error": of_metric["base"]["standard_error"],
            **score,
        }
        for one in benchmarks
        for task, found in one["tasks"].items()
        for metric, of_metric in {found["metric"]: found, **found["other_metrics"]}.items()
        for model, score in of_metric["models"].items()
    ]


def write_benchmarks(benchmarks: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The rows as CSV, numbers in full. Raises ``UserError`` if the path cannot be written to."""
    written = io.StringIO()
    writer = csv.DictWriter(written, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(benchmark_rows(benchmarks))
    write_whole(path, written.getvalue())


def benchmark_table(benchmarks: Sequence[Mapping[str, Any]]) -> Table:
    """A row a task, a column a model: the metric that counts, and how much of it was lost."""
    heads, *rows = _cells(benchmarks)
    table = Table(title="benchmarks", title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(escape(head), justify="left" if number < 2 else "right", overflow="fold")
    for cells in rows:
        table.add_row(*map(escape, cells))
    return table


def benchmark_markdown(benchmarks: Sequence[Mapping[str, Any]]) -> str:
    """The same for an issue or a paper."""
    heads, *rows = _cells(benchmarks)
    lines = [heads, [":--"] * 2 + ["--:"] * (len(heads) - 2), *rows]
    table = "\n".join(f"| {' | '.join(cells)} |".replace("\n", " ") for cells in lines)
    return (
        f"{table}\n\n± one standard error over the questions. Drop: what the model lost of the "
        "base's score, as a share of it; below 0 is a gain.\n"
    )


def _cells(benchmarks: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Heads, a line for each task, and the means."""
    rows = [row for row in benchmark_rows(benchmarks) if row["counts"]]
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = {
        row["task"]: [
            row["task"],
            row["metric"],
            _value(row["base_value"], row["base_standard_error"]),
        ]
        for row in rows
    }
    for row in rows:
        value = _value(row["value"], row["standard_error"])
        lines[row["task"]].append(f"{value}, drop {_share(row['relative_drop'])}")
    means = {model: drop for one in benchmarks for model, drop in one["mean_relative_drop"].items()}
    last = ["mean of tasks", "", "", *(f"drop {_share(means[model])}" for model in models)]
    return [["task", "metric", "base", *models], *lines.values(), last]


def _value(value: float | None, error: float | None) -> str:
    if value is None:
        return "no number"
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.1%}"
