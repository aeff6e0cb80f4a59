"""Scores of benchmark tasks: what a model lost of its base's, as values and as tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from freezetrain.errors import UserError, near_misses
from freezetrain.formats import fixed, signed_percent
from freezetrain.tables import Column, Table


@dataclass(frozen=True)
class Score:
    """One metric of one task, of one model."""

    value: float | None  # None where the task gave no finite number
    standard_error: float | None  # over the questions; None where it is not known
    higher_is_better: bool | None  # None where it is not known
    num_fewshot: int | None = None  # solved examples before a question; None where not known


Scores = dict[str, dict[str, Score]]
"""Task → metric → score. The metrics of a task stand in the order in which the task has them."""


def main_metrics(scores: Scores, chosen: Mapping[str, str]) -> dict[str, str]:
    """The metric of each task that counts: the one ``chosen`` for it, else its first.

    Raises UserError where ``chosen`` names a task or a metric that there is none of.
    """
    for task, metric in chosen.items():
        if task not in scores:
            raise UserError(
                f"benchmarks.metrics names a task {task!r} that was not run"
                f"{near_misses(task, scores)}; those that were are {' '.join(scores)}"
            )
        if metric not in scores[task]:
            known = scores[task]
            raise UserError(
                f"the task {task!r} has no metric {metric!r}{near_misses(metric, known)}; its "
                f"metrics are {' '.join(known)}"
            )
    return {task: chosen.get(task, next(iter(found))) for task, found in scores.items() if found}


def relative_drop(base: Score, adapted: Score) -> float | None:
    """What the adapted model lost, as a share of the base's score; below 0 is a gain.

    (base − adapted) / base, as SSU reports source tasks ("Source-Shielded Updates", 2025, arXiv
    2512.04844), with the sign turned for a metric of which less is better. None where the base's
    score is not above 0, a score is no number, or it is not known which is better.
    """
    if base.value is None or adapted.value is None:
        return None
    if base.higher_is_better is None or base.value <= 0:
        return None
    drop = (base.value - adapted.value) / base.value
    return drop if base.higher_is_better else 0.0 - drop


@dataclass(frozen=True)
class MetricDrop:
    """One metric of one task, of a model and its base: a line of benchmarks.csv."""

    task: str
    metric: str
    counts: bool
    """Whether this metric's drop goes into the mean."""
    higher_is_better: bool | None
    model: str
    base_value: float | None
    base_standard_error: float | None
    value: float | None
    standard_error: float | None
    relative_drop: float | None
    num_fewshot: int | None = None
    """Solved examples before a question; None where that is not known."""


@dataclass(frozen=True)
class BenchmarkDrops:
    """All metrics of all tasks of one model; of each task the metric that counts comes first."""

    model: str
    metrics: list[MetricDrop]

    @property
    def counting(self) -> list[MetricDrop]:
        """The metric of each task that counts."""
        return [metric for metric in self.metrics if metric.counts]

    @property
    def mean_relative_drop(self) -> float | None:
        """The mean over the tasks, each once; None where no task has a drop."""
        drops = [m.relative_drop for m in self.counting if m.relative_drop is not None]
        return fmean(drops) if drops else None

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON: task → its metric that counts, with the others inside."""
        tasks: dict[str, Any] = {}
        for metric in self.metrics:
            scores = {
                "higher_is_better": metric.higher_is_better,
                "num_fewshot": metric.num_fewshot,
                "base": {"value": metric.base_value, "standard_error": metric.base_standard_error},
                "models": {
                    self.model: {
                        "value": metric.value,
                        "standard_error": metric.standard_error,
                        "relative_drop": metric.relative_drop,
                    }
                },
            }
            if metric.counts:
                tasks[metric.task] = {"metric": metric.metric, **scores, "other_metrics": {}}
            else:
                tasks[metric.task]["other_metrics"][metric.metric] = scores
        return {"tasks": tasks, "mean_relative_drop": {self.model: self.mean_relative_drop}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "BenchmarkDrops":
        """The inverse of ``to_dict``."""
        (model,) = data["mean_relative_drop"]
        metrics = []
        for task, counting in data["tasks"].items():
            others = counting.get("other_metrics", {})
            for metric, scores in {counting["metric"]: counting, **others}.items():
                metrics.append(
                    MetricDrop(
                        task,
                        metric,
                        scores is counting,
                        scores["higher_is_better"],
                        model,
                        scores["base"]["value"],
                        scores["base"]["standard_error"],
                        **scores["models"][model],
                        num_fewshot=scores.get("num_fewshot"),
                    )
                )
        return cls(model, metrics)


def compare_scores(
    base: Scores, model: str, adapted: Scores, chosen: Mapping[str, str] | None = None
) -> BenchmarkDrops:
    """The scores of ``model``, ``adapted``, against its base's.

    ``chosen``: task → the metric that counts, see ``main_metrics``, which this raises as.
    """
    metrics = []
    for task, main in main_metrics(base, chosen or {}).items():
        for metric in [main, *(name for name in base[task] if name != main)]:
            before, after = base[task][metric], adapted[task][metric]
            metrics.append(
                MetricDrop(
                    task,
                    metric,
                    metric == main,
                    before.higher_is_better,
                    model,
                    before.value,
                    before.standard_error,
                    after.value,
                    after.standard_error,
                    relative_drop(before, after),
                    before.num_fewshot,
                )
            )
    return BenchmarkDrops(model, metrics)


def benchmarks_table(models: Sequence[BenchmarkDrops]) -> Table:
    """Tasks × models: the metric that counts, and what was lost of the base's."""
    tasks: dict[str, dict[str, MetricDrop]] = {}
    for drops in models:
        for metric in drops.counting:
            tasks.setdefault(metric.task, {})[drops.model] = metric
    columns = [
        Column("task", lambda by_model: _any(by_model).task, text=True),
        Column("metric", lambda by_model: _any(by_model).metric, text=True),
        Column("examples", lambda by_model: _any(by_model).num_fewshot),
        Column(
            "base",
            lambda by_model: _any(by_model).base_value,
            fixed,
            note=lambda by_model: _error(_any(by_model).base_standard_error),
        ),
    ]
    for drops in models:
        columns += _model_columns(drops)
    title = "Benchmarks; relative drop: (base − model) / base. Standard error below the value"
    return Table(title, columns, list(tasks.values()), foot="mean of tasks", sortable=True)


ByModel = Mapping[str, MetricDrop]
"""One task: model → its metric that counts."""


def _any(by_model: ByModel) -> MetricDrop:
    return next(iter(by_model.values()))


def _model_columns(drops: BenchmarkDrops) -> list[Column]:
    name = drops.model

    def value(by_model: ByModel, field: str) -> Any:
        return getattr(by_model[name], field) if name in by_model else None

    mean = MetricDrop("", "", True, None, name, None, None, None, None, drops.mean_relative_drop)
    return [
        Column(
            "value",
            lambda by_model: value(by_model, "value"),
            fixed,
            note=lambda by_model: _error(value(by_model, "standard_error")),
            group=name,
        ),
        Column(
            "relative drop",
            lambda by_model: value(by_model, "relative_drop"),
            signed_percent,
            group=name,
            foot={name: mean},
        ),
    ]


def _error(standard_error: float | None) -> str:
    return "" if standard_error is None else f"± {fixed(standard_error)}"
