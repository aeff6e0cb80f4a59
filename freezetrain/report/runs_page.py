"""The page of one or several runs, side by side: what they gained, and what they forgot."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from freezetrain.errors import UserError
from freezetrain.evaluation import Evaluation
from freezetrain.evaluation.benchmarks import benchmarks_table
from freezetrain.evaluation.brake import Breach, Measure
from freezetrain.evaluation.continuations import examples_table, generation_tables
from freezetrain.evaluation.texts import TextFacts, texts_table
from freezetrain.formats import (
    count,
    ends,
    fixed,
    language_and_code,
    language_name,
    percent,
    signed,
    signed_percent,
)
from freezetrain.language_names import TOGETHER
from freezetrain.report.comparison import (
    beyond_noise,
    failed_table,
    language_rows,
    languages_table,
)
from freezetrain.report.page import drawn, settings_text, write_page
from freezetrain.report.run import UNITS, RegionFacts, Run, have_courses, shared_measure
from freezetrain.report.run_plots import (
    common_languages,
    course_figure,
    forgetting_figure,
    key_figure,
    panel_figure,
    plane_figure,
    rehearsal_figure,
    scaled,
)
from freezetrain.report.style import MOST, marks, to_svg
from freezetrain.tables import Column, Table, facts_table

OPEN = 24  # languages whose panels are shown at once; the others unfold


def render_runs(
    runs: Sequence[Run],
    path: str | os.PathLike[str],
    failed: Mapping[str, str] | None = None,
) -> None:
    """Write the page of ``runs`` to ``path``, whole or not at all; an older one is replaced.

    ``failed``: model without figures → why, which the page says too.

    The page loads nothing. The same runs give the same bytes. Raises ``UserError`` for no run, more
    runs than can be told apart, two of one name, a run without an evaluation after its base's, or a
    path that cannot be written to.
    """
    _check(runs)
    courses = have_courses(runs)
    write_page(
        path,
        "report/runs.html.j2",
        runs=runs,
        held_out={code for run in runs for code in run.model.forgetting.languages},
        without_target=[run.name for run in runs if run.history.target is None],
        seen=[model_line(run) for run in runs],
        brakes=[brake_line(run) for run in runs if run.brake is not None],
        subsamples={run.name: part for run in runs if (part := _subsample(run)) < 1},
        plots=_plots(runs, courses),
        panels=_panels(runs) if courses else [],
        open_panels=OPEN,
        unit=UNITS[shared_measure(runs)],
        key=_key(runs),
        tables=_tables(runs),
        failed=failed_table(failed) if failed else None,
    )


def _check(runs: Sequence[Run]) -> None:
    if not 1 <= len(runs) <= MOST:
        raise UserError(
            f"expected 1 to {MOST} runs, which a reader can tell apart, got {len(runs)}; show fewer"
        )
    names = Counter(run.name for run in runs)
    if twice := [name for name, times in names.items() if times > 1]:
        raise UserError(f"expected a name of its own for each run, got {twice[0]!r} twice")
    for run in runs:
        if len(run.evaluations) < 2:
            raise UserError(
                f"expected an evaluation of the base and one after it, and the run {run.name!r} "
                f"has {len(run.evaluations)}; wait until it has been evaluated again"
            )


# Lines of figures.


def model_line(run: Run) -> str:
    """Gain, mean, worst and verdicts of the run's model; also of its last step where it went
    back."""
    line = f"“{run.name}”, step {count(run.model.step)}: {_figures_line(run.model)}"
    verdicts = Counter(
        beyond_noise(change.interval) for change in run.model.forgetting.languages.values()
    )
    known = verdicts.total() - verdicts[None]
    if known:
        line += (
            f" Of {count(known)} intervals: {count(verdicts['forgotten'])} forgotten, "
            f"{count(verdicts['improved'])} improved, {count(verdicts['no'])} within noise."
        )
    else:
        line += " No intervals: small differences may be noise."
    if run.rehearsed:
        last_kl = run.rehearsed[-1].kl
        line += f" KL to the base on its own words, when logged last: {last_kl:.2g} nats per token."
    if run.average is not None:
        gain = run.average.target_gain
        line += f" Average of the weights, which was exported: mean {signed(run.average.mean)}"
        line += "." if gain is None else f", gain {signed(gain)}."
    if run.model is not run.history.last:
        last = run.history.last
        line += f" Last step, {count(last.step)}: {_figures_line(last)}"
    return line


def _figures_line(evaluation: Evaluation) -> str:
    change = evaluation.forgetting
    worst, loss = change.worst
    parts = []
    if change.target is not None and change.target_gain is not None:
        gain = _with_ends(change.target_gain, change.target_gain_interval)
        parts.append(f"gain of {language_name(change.target)} {gain}")
    parts.append(f"mean loss {_with_ends(change.mean, change.mean_interval)}")
    parts.append(signed_percent(change.relative_mean))
    parts.append(f"worst {language_name(worst)} {signed(loss)}")
    return f"{', '.join(parts)}."


def _with_ends(value: float, interval: tuple[float, float] | None) -> str:
    return signed(value) if interval is None else f"{signed(value)} ({ends(interval)})"


def brake_line(run: Run) -> str:
    """Limits, what was exceeded first, where training ended, and of which step the model is."""
    brake = run.brake
    assert brake is not None
    limits = [
        f"{language_name(name)} {measured(limit, brake.measure)}"
        for name, limit in brake.limits.items()
    ]
    line = f"“{run.name}”: limits {', '.join(limits)}; action {brake.action}. "
    breaches = brake.breaches(run.evaluations)
    if breaches:
        first = breaches[0]
        loss = measured(first.value, brake.measure)
        line += f"First exceeded at step {count(first.step)}: {language_name(first.name)} {loss}. "
    else:
        line += "No limit was exceeded. "
    ended = brake.ended_at(run.evaluations)
    if ended is not None:
        line += f"Training ended at step {count(ended)}. "
    return f"{line}Model of step {count(run.model.step)}."


def measured(value: float, measure: Measure) -> str:
    """A loss in a brake's measure: ``7.10%``, ``0.0210 nats per byte``; below 0 with its sign."""
    if value == float("inf"):
        return "∞"
    if measure == "nats_per_byte":
        return f"{_precise(value, 4)} nats per byte"
    return f"{_precise(100 * value, 2)}%"


def _precise(value: float, digits: int) -> str:
    """So many decimals; below 100 four significant digits, where those hide them.

    Else a loss that is just above its limit would read like it, and a small limit like none.
    """
    brief = f"{value:.4g}"
    hidden = abs(value) < 100 and float(brief) != round(value, digits)
    return brief.replace("-", "−") if hidden else fixed(value, digits)


def _subsample(run: Run) -> float:
    """Share of the base's text that the last evaluation is of."""
    base, last = (
        sum(figures.bytes for figures in evaluation.figures.values())
        for evaluation in (run.history.base, run.history.last)
    )
    return last / base


# Plots.


def _plots(runs: Sequence[Run], courses: bool) -> dict[str, dict[str, Markup]]:
    plots = {}
    if all(run.history.target is not None for run in runs):
        plots["plane"] = drawn("plane", plane_figure, runs)
    if courses:
        plots["course"] = drawn("course", course_figure, runs)
    if any(run.rehearsed for run in runs):
        plots["rehearsal"] = drawn("rehearsal", rehearsal_figure, runs)
    if common_languages(runs):
        plots["forgetting"] = drawn("forgetting", forgetting_figure, runs)
    return plots


def _key(runs: Sequence[Run]) -> list[tuple[str, Markup]]:
    """Each run's name and its mark, for the key above the panels."""
    chosen = marks(run.name for run in runs)
    return [
        (name, Markup(to_svg(key_figure(mark), f"key-{place}")))
        for place, (name, mark) in enumerate(chosen.items())
    ]


def _panels(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A panel a held-out language, the largest loss that any run's model has of it first."""
    measure = shared_measure(runs)
    chosen = marks(run.name for run in runs)
    losses: dict[str, dict[str, float]] = {}
    for run in runs:
        for language in run.model.forgetting.languages:
            loss = scaled(run.model.loss(language, measure).value, measure)
            losses.setdefault(language, {})[run.name] = loss
    across, up = _ranges(runs, measure)
    panels: list[dict[str, Any]] = []
    for language in sorted(losses, key=lambda language: -max(losses[language].values())):
        figure = panel_figure(runs, language, chosen, measure, across, up)
        values = [f"{name} {loss:+.3g}" for name, loss in losses[language].items()]
        panels.append(
            {
                "name": language_name(language),
                "label": f"{language_name(language)}: {', '.join(values)} {UNITS[measure]}",
                "svg": Markup(to_svg(figure, f"panel-{len(panels)}")),
            }
        )
    return panels


def _ranges(
    runs: Sequence[Run], measure: Measure
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The steps and the losses that all panels show, with a little room around."""
    steps = [evaluation.step for run in runs for evaluation in run.evaluations]
    values = [0.0]
    for run in runs:
        for language in run.model.forgetting.languages:
            for evaluation in run.evaluations:
                loss = evaluation.loss(language, measure)
                values += [loss.value, *(loss.interval or ())]
            limit = run.limit(language, measure)
            values += [] if limit is None else [limit]
    heights = [scaled(value, measure) for value in values]
    return _roomy(min(steps), max(steps)), _roomy(min(heights), max(heights))


def _roomy(low: float, high: float) -> tuple[float, float]:
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


# Tables.


def _tables(runs: Sequence[Run]) -> dict[str, Any]:
    benchmarks = [run.benchmarks for run in runs if run.benchmarks is not None]
    generations = {run.name: run.generation for run in runs if run.generation is not None}
    return {
        "runs": _runs_table(runs),
        "languages": languages_table(language_rows(runs)),
        "breaches": _breaches_table(runs),
        "benchmarks": benchmarks_table(benchmarks) if benchmarks else None,
        "generation": generation_tables(generations),
        "examples": [examples_table(name, found) for name, found in generations.items()],
        "texts": _texts_tables(runs),
        "regions": [
            (run.name, _region_table(run.region), _region_places_table(run.region))
            for run in runs
            if run.region is not None
        ],
        "differing": _settings_table(runs, differing=True),
        "settings": _settings_table(runs, differing=False),
    }


def _runs_table(runs: Sequence[Run]) -> Table:
    """A row a run: what its model gained and lost."""
    columns = [Column("run", "name", text=True)]
    if have_courses(runs):
        columns.append(Column("step", lambda run: run.model.step))
    columns += [
        Column(
            "mean loss of held-out",
            lambda run: run.model.forgetting.mean,
            signed,
            note=lambda run: ends(run.model.forgetting.mean_interval),
        ),
        Column("relative", lambda run: run.model.forgetting.relative_mean, signed_percent),
        Column(
            "worst",
            lambda run: run.model.forgetting.worst[1],
            signed,
            note=lambda run: language_and_code(run.model.forgetting.worst[0]),
        ),
    ]
    if any(run.history.target is not None for run in runs):
        columns += [
            Column(
                "gain of target",
                lambda run: run.model.forgetting.target_gain,
                signed,
                note=lambda run: ends(run.model.forgetting.target_gain_interval),
            ),
            Column("target", lambda run: run.history.target, language_and_code, text=True),
        ]
    return Table("The runs’ models against the base, in nats per byte", columns, runs)


def _breaches_table(runs: Sequence[Run]) -> Table | None:
    """Where a brake's limit was exceeded; None if nowhere."""
    rows: list[tuple[str, Measure, Breach]] = []
    for run in runs:
        if run.brake is not None:
            breaches = run.brake.breaches(run.evaluations)
            rows += [(run.name, run.brake.measure, breach) for breach in breaches]
    columns = [
        Column("run", 0, text=True),
        Column("step", lambda row: row[2].step),
        Column("of", lambda row: row[2].name, _limited, text=True),
        Column("lost", lambda row: measured(row[2].value, row[1])),
        Column("limit", lambda row: measured(row[2].limit, row[1])),
    ]
    return Table("Where a limit was exceeded", columns, rows) if rows else None


def _limited(name: str) -> str:
    return name if name in TOGETHER else language_and_code(name)


def _texts_tables(runs: Sequence[Run]) -> list[Table]:
    """What was read of each language; once for runs that read the same."""
    readers: dict[tuple[TextFacts, ...], list[str]] = {}
    for run in runs:
        if run.texts:
            readers.setdefault(tuple(run.texts), []).append(f"“{run.name}”")
    return [
        texts_table(texts, f"Held-out texts: {', '.join(names)}")
        for texts, names in readers.items()
    ]


def _region_table(region: RegionFacts) -> Table:
    """What a region is and how it was made."""
    facts = {
        "entries": f"{count(region.entries)}, {percent(region.share)} of all weights",
        "in training": region.frozen,
        "file": region.file,
        "base": region.base,
        "digest": region.digest,
    }
    facts |= {f"made: {key.replace('_', ' ')}": settings_text(v) for key, v in region.made.items()}
    facts |= {f"share of {name}": percent(share) for name, share in region.elsewhere.items()}
    return facts_table("The region", {key: text for key, text in facts.items() if text})


def _region_places_table(region: RegionFacts) -> Table:
    """Share of each kind of parameter in the region, layer by layer."""
    layers = sorted({layer for shares in region.coverage.values() for layer in shares}, key=int)
    columns = [Column("layer", lambda layer: layer, text=True)]
    columns += [_place_column(kind, shares) for kind, shares in region.coverage.items()]
    return Table("Share of each layer’s parameters that is in the region", columns, layers)


def _place_column(kind: str, shares: Mapping[str, float]) -> Column:
    return Column(kind, shares.get, percent)


def _settings_table(runs: Sequence[Run], *, differing: bool) -> Table:
    """Settings side by side: those in which the runs differ, or those that all share."""
    labels = dict.fromkeys(label for run in runs for label in run.settings)
    rows = []
    for label in labels:
        values = [settings_text(run.settings.get(label)) for run in runs]
        if (len(set(values)) > 1) == differing:
            rows.append([label, *values])
    names = [run.name for run in runs] if differing else ["value"]
    columns = [Column(name, n, text=True) for n, name in enumerate(["setting", *names])]
    shared = "Settings that all runs share" if len(runs) > 1 else "Settings"
    return Table("Settings in which the runs differ" if differing else shared, columns, rows)
