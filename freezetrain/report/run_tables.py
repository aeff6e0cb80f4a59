"""The tables of the page of runs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from freezetrain.formats import (
    count,
    fixed,
    language_and_code,
    percent,
    quoted,
    signed,
    signed_percent,
)
from freezetrain.report.run import NATS, has_courses, model_evaluation
from freezetrain.report.tables import Cell, Table, share_cell

Run = Mapping[str, Any]


def runs_table(runs: Sequence[Run]) -> Table:
    """A row a run: what its model gained and lost."""
    courses = has_courses(runs)
    with_target = any(run["history"]["target"] is not None for run in runs)
    rows = []
    for run in runs:
        evaluation = model_evaluation(run)
        change = evaluation["forgetting"]
        worst, target = change["worst"], change["target"]
        row: list[str | Cell] = [run["name"]]
        if courses:
            row.append(count(evaluation["step"]))
        row.append(_with_interval(change["mean"], change.get("mean_interval")))
        row.append(signed_percent(change.get("relative_mean")))
        row.append(Cell(signed(worst["delta_nll_per_byte"]), note=_named(worst["language"])))
        if with_target:
            gain = _with_interval(change["target_gain"], change.get("target_gain_interval"))
            row += [gain, "–" if target is None else language_and_code(target)]
        rows.append(row)
    columns = ["run", "step"] if courses else ["model"]
    columns += ["mean loss of held-out", "relative", "worst"]
    columns += ["gain of target", "target"] if with_target else []
    texts = (0, len(columns) - 1) if with_target else (0,)
    return Table("The runs’ models against the base, in nats per byte", columns, rows, texts)


def breaches_table(runs: Sequence[Run]) -> Table | None:
    """Where a brake's limit was exceeded; None if nowhere."""
    rows = [
        [
            run["name"],
            count(breach["step"]),
            _named(breach["name"]),
            measured(breach["value"], run["brake"]["measure"]),
            measured(breach["limit"], run["brake"]["measure"]),
        ]
        for run in runs
        if run.get("brake")
        for breach in run["brake"]["breaches"]
    ]
    columns = ["run", "step", "of", "lost", "limit"]
    return Table("Where a limit was exceeded", columns, rows, (0, 2)) if rows else None


def texts_tables(runs: Sequence[Run]) -> list[Table]:
    """What was read of each language; once for runs that read the same."""
    read = [(run["name"], run["texts"]) for run in runs if run.get("texts")]
    different = [
        texts for n, (_, texts) in enumerate(read) if texts not in [t for _, t in read[:n]]
    ]
    tables = []
    for texts in different:
        names = [name for name, of_run in read if of_run == texts]
        who = f"run{'' if len(names) == 1 else 's'} {quoted(names)}"
        tables.append(read_table(f"Held-out texts that the {who} read", texts))
    return tables


def read_table(title: str, texts: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of ``evaluation.texts_table.texts_rows``."""
    rows = []
    for read in texts:
        values = [read[name] for name in ("documents", "bytes", "tokens")]
        per_token = read["bytes"] / read["tokens"] if read["tokens"] else None
        rows.append(
            [
                language_and_code(read["language"]),
                *(Cell(count(value), value) for value in values),
                "–" if per_token is None else Cell(fixed(per_token, 2), per_token),
                *(share_cell(read.get(name)) for name in ("unknown", "byte_fallback")),
            ]
        )
    columns = ["language", "documents", "bytes", "tokens", "bytes/token", "unknown"]
    columns.append("byte fallback")
    return Table(title, columns, rows, sortable=True)


def region_table(region: Mapping[str, Any]) -> Table:
    """What a region is and how it was made."""
    rows = [["entries", f"{count(region['entries'])}, {percent(region['share'])} of all weights"]]
    if region.get("frozen"):
        rows.append(["in training", region["frozen"]])
    rows += [[name, str(region[name])] for name in ("file", "base", "digest") if region.get(name)]
    rows += [[f"made: {_spaced(name)}", _plain(value)] for name, value in region["made"].items()]
    rows += [[f"share of {name}", percent(share)] for name, share in region["elsewhere"].items()]
    return Table("The region", ["what", "value"], rows, texts=(0, 1))


def region_places_table(region: Mapping[str, Any]) -> Table:
    """Share of each kind of parameter in the region, layer by layer."""
    kinds = list(region["coverage"])
    layers = sorted(
        {layer for by_layer in region["coverage"].values() for layer in by_layer}, key=int
    )
    rows = [
        [layer, *(percent(region["coverage"][kind].get(layer)) for kind in kinds)]
        for layer in layers
    ]
    title = "Share of each layer’s parameters that is in the region"
    return Table(title, ["layer", *kinds], rows)


def settings_table(runs: Sequence[Run], *, differing: bool) -> Table:
    """Settings side by side: those in which the runs differ, or those that all share."""
    settings = [run.get("settings") or {} for run in runs]
    labels = list(dict.fromkeys(label for of_run in settings for label in of_run))
    rows = []
    for label in labels:
        values = [_plain(of_run[label]) if label in of_run else "–" for of_run in settings]
        if (len(set(values)) > 1) == differing:
            rows.append([label, *values] if differing else [label, values[0]])
    columns = ["setting", *((run["name"] for run in runs) if differing else ["value"])]
    shared = "Settings that all runs share" if len(runs) > 1 else "Settings"
    title = "Settings in which the runs differ" if differing else shared
    return Table(title, columns, rows, texts=tuple(range(len(columns))))


def benchmarks_table(runs: Sequence[Run]) -> Table | None:
    """Tasks × runs with the drop relative to the base; None where no run has benchmarks."""
    given = {run["name"]: run["benchmarks"] for run in runs if run.get("benchmarks")}
    if not given:
        return None
    tasks = list(dict.fromkeys(task for found in given.values() for task in found["tasks"]))
    columns, groups = ["task", "metric", "base"], [("", 3)]
    for name in given:
        columns += ["value", "relative drop"]
        groups.append((name, 2))
    rows = []
    for task in tasks:
        of_task = {n: found["tasks"][task] for n, found in given.items() if task in found["tasks"]}
        first = next(iter(of_task.values()))
        row: list[str | Cell] = [task, first["metric"], _score(first["base"])]
        for name in given:
            score = of_task.get(name, {"models": {}})["models"].get(name)
            drop = None if score is None else score["relative_drop"]
            row += [_score(score), "–" if drop is None else Cell(signed_percent(drop), drop)]
        rows.append(row)
    foot: list[str | Cell] = ["mean", "", ""]
    for name, found in given.items():
        foot += ["", signed_percent(found["mean_relative_drop"].get(name))]
    return Table(
        "Benchmarks; relative drop: (base − model) / base. Standard error below the value",
        columns,
        rows,
        texts=(0, 1),
        groups=groups,
        foot=[foot],
        sortable=True,
        broad=True,
    )


def measured(value: float | None, measure: str) -> str:
    """A loss in a brake's measure: ``7.10%``, ``0.0210 nats per byte``; below 0 with its sign.

    None, which is how JSON holds a perplexity past the float range, is ``∞``.
    """
    if value is None:
        return "∞"
    if measure == NATS:
        return f"{_precise(value, 4)} nats per byte"
    return f"{_precise(100 * value, 2)}%"


def _precise(value: float, digits: int) -> str:
    """So many decimals; below 100 four significant digits, where those hide them.

    Else a loss that is just above its limit would read like it, and a small limit like none.
    """
    brief = f"{value:.4g}"
    hidden = abs(value) < 100 and float(brief) != round(value, digits)
    return brief.replace("-", "−") if hidden else fixed(value, digits)


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str | Cell:
    if value is None:
        return "–"
    note = "" if interval is None else f"{signed(interval[0])} to {signed(interval[1])}"
    return Cell(signed(value), value, note)


def _score(score: Mapping[str, Any] | None) -> Cell:
    if score is None or score["value"] is None:
        return Cell("–")
    error = score.get("standard_error")
    return Cell(fixed(score["value"]), score["value"], "" if error is None else f"± {fixed(error)}")


def _named(name: str) -> str:
    return name if name in ("mean", "worst") else language_and_code(name)


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
