"""`freezetrain forgetting`: what models lost against their base, and what they gained."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from freezetrain.errors import CheckError, UserError, near_misses
from freezetrain.evaluation import DocumentSums, History, forgetting_table
from freezetrain.evaluation.tables import texts_rows, texts_table
from freezetrain.files import write_text
from freezetrain.formats import shortest_endings
from freezetrain.measuring.harness import Harness, Scores, compared, main_metrics
from freezetrain.measuring.held_out import evaluate_with_bar, held_out_documents, window_length
from freezetrain.measuring.recipe import ForgettingRecipe
from freezetrain.models import check_fit, load_model, load_tokenizer, meta_model, on_gpu
from freezetrain.recipe.sources import ModelSource
from freezetrain.report.comparison import comparison_rows, to_markdown, write_csv
from freezetrain.report.runs_page import render_runs
from freezetrain.run_folder import Outcome


@dataclass(frozen=True)
class _Found:
    """What one model gave."""

    sums: dict[str, DocumentSums]
    texts: list[dict[str, Any]]
    scores: Scores


def run(recipe: ForgettingRecipe, folder: Path) -> Outcome:
    """Evaluate the base, then each model, one in memory at a time, on the same documents.

    Leaves forgetting.csv, forgetting.md and report.html, and benchmarks.csv where there are tasks.
    """
    sources = [recipe.base, *recipe.models]
    base, *names = _names(sources)
    # What can be refused is, before any model is run.
    max_length = _common_window(recipe, sources)
    harness = Harness(recipe.benchmarks) if recipe.benchmarks.tasks else None
    before = _evaluated(recipe, recipe.base, base, max_length, harness)
    main_metrics(before.scores, recipe.benchmarks.metrics)
    runs: list[dict[str, Any]] = []
    tables = [texts_table(before.texts, title=f"texts, in tokens of {base}")]
    for name, source in zip(names, recipe.models, strict=True):
        after = _evaluated(recipe, source, name, max_length, harness)
        if after.texts != before.texts:
            tables.append(texts_table(after.texts, title=f"texts, in tokens of {name}"))
        history = History(recipe.target)
        history.add(0, before.sums)
        found = history.add(1, after.sums)
        tables.append(
            forgetting_table(
                history.base.figures,
                found.figures,
                recipe.target,
                found=found.forgetting,
                title=name,
            )
        )
        drops = None
        if harness is not None:
            drops = compared(before.scores, name, after.scores, recipe.benchmarks.metrics)
        runs.append(
            {
                "name": name,
                "history": {
                    **history.to_dict(),
                    "max_length": max_length,
                    "overlap": recipe.evaluation.overlap,
                },
                "settings": _settings(recipe.base, source),
                "region": None,
                "texts": after.texts,
                "brake": None,
                "benchmarks": drops,
            }
        )
    return Outcome({"base": base, "runs": runs}, [*tables, *_written(runs, folder)])


def _names(sources: Sequence[ModelSource]) -> list[str]:
    """What the models are called in tables; a revision is named too, as in ``model@main``."""
    paths = list(dict.fromkeys(source.path.rstrip("/") for source in sources))
    called = dict(zip(paths, shortest_endings(paths), strict=True))
    names = []
    for source in sources:
        name, revision = called[source.path.rstrip("/")], source.revision
        names.append(name if revision is None else f"{name}@{revision}")
        if names.count(names[-1]) > 1:
            raise UserError(
                f"expected each model once, got {names[-1]} twice; leave one out, or give another "
                "revision"
            )
    return names


def _common_window(recipe: ForgettingRecipe, sources: list[ModelSource]) -> int:
    """Tokens of context that all models have: with more, a model would seem to forget less."""
    lengths = []
    for source in sources:
        shape = meta_model(source)
        lengths.append(window_length(recipe.evaluation, shape))
        check_fit(shape, load_tokenizer(source), lengths[-1])
    return min(lengths)


def _evaluated(
    recipe: ForgettingRecipe,
    source: ModelSource,
    name: str,
    max_length: int,
    harness: Harness | None,
) -> _Found:
    tokenizer = load_tokenizer(source)
    documents = held_out_documents(recipe.evaluation, tokenizer)
    if recipe.target is not None and recipe.target not in documents:
        raise UserError(
            f"the target {recipe.target!r} is not among the languages evaluated"
            f"{near_misses(recipe.target, documents)}; they are {' '.join(documents)}"
        )
    model = on_gpu(load_model(source))
    try:
        sums = evaluate_with_bar(model, documents, recipe.evaluation, name, max_length)
    except CheckError as error:
        raise CheckError(f"{name}: {error}") from error
    scores = {} if harness is None else harness.scores(model, tokenizer)
    return _Found(sums, texts_rows(documents, tokenizer), scores)


def _settings(base: ModelSource, model: ModelSource) -> dict[str, Any]:
    return {
        f"{what}'s {field}": getattr(source, field)
        for what, source in (("base", base), ("model", model))
        for field in ("path", "revision", "dtype")
    }


def _written(runs: Sequence[Mapping[str, Any]], folder: Path) -> list[Any]:
    """Write the files for people and for spreadsheets; what to show of them."""
    rows = comparison_rows(runs)
    write_csv(rows, folder / "forgetting.csv")
    markdown, shown = to_markdown(rows), []
    benchmarks = [run["benchmarks"] for run in runs if run["benchmarks"] is not None]
    if benchmarks:
        write_benchmarks(benchmarks, folder / "benchmarks.csv")
        markdown += "\n" + benchmark_markdown(benchmarks)
        shown.append(benchmark_table(benchmarks))
    write_text(folder / "forgetting.md", markdown)
    render_runs(runs, folder / "report.html")
    return [*shown, f"report: {folder / 'report.html'}"]


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
    write_text(path, written.getvalue())


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
