"""Scores on benchmark tasks of an adapted model against those of its base."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from freezetrain.errors import UserError, near_misses


@dataclass(frozen=True)
class Score:
    """One metric of one task, of one model."""

    value: float | None  # None where the task gave no finite number
    standard_error: float | None  # over the questions; None where it is not known
    higher_is_better: bool | None  # None where it is not known


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


def compared(
    base: Scores, name: str, adapted: Scores, chosen: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The two models side by side, ready for JSON; ``name`` is the adapted one's.

    ``mean_relative_drop`` is the mean over the tasks of the relative drop of the metric that
    counts, each task once; None where no task has one.
    """
    tasks: dict[str, Any] = {}
    for task, main in main_metrics(base, chosen or {}).items():
        found = {
            metric: _metric(score, name, adapted[task][metric])
            for metric, score in base[task].items()
        }
        tasks[task] = {"metric": main, **found.pop(main), "other_metrics": found}
    drops = [one["models"][name]["relative_drop"] for one in tasks.values()]
    known = [drop for drop in drops if drop is not None]
    return {"tasks": tasks, "mean_relative_drop": {name: fmean(known) if known else None}}


def _metric(base: Score, name: str, adapted: Score) -> dict[str, Any]:
    return {
        "higher_is_better": base.higher_is_better,
        "base": _plain(base),
        "models": {name: {**_plain(adapted), "relative_drop": relative_drop(base, adapted)}},
    }


def _plain(score: Score) -> dict[str, float | None]:
    return {"value": score.value, "standard_error": score.standard_error}
