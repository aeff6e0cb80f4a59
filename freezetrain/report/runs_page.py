"""The page of one or several runs, side by side: what they gained, and what they forgot."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from freezetrain.errors import UserError
from freezetrain.formats import language_name
from freezetrain.report.comparison import comparison_rows, languages_table
from freezetrain.report.page import drawn, write_page
from freezetrain.report.run import (
    UNITS,
    has_courses,
    interval,
    limit,
    losses,
    measure_of,
    model_evaluation,
)
from freezetrain.report.run_plots import (
    common_languages,
    course_figure,
    forgetting_figure,
    key_figure,
    panel_figure,
    plane_figure,
)
from freezetrain.report.run_sentences import brake_seen, introduction, no_plane, seen, subsampled
from freezetrain.report.run_tables import (
    benchmarks_table,
    breaches_table,
    region_places_table,
    region_table,
    runs_table,
    settings_table,
    texts_tables,
)
from freezetrain.report.style import MOST, marks, to_svg

OPEN = 24  # languages whose panels are shown at once; the others unfold

Run = Mapping[str, Any]


def render_runs(runs: Sequence[Run], path: str | os.PathLike[str]) -> None:
    """Write the page of ``runs`` to ``path``, whole or not at all; an older one is replaced.

    A run is a mapping of ``name``; ``history``, as ``forgetting.json`` holds it; and, where known,
    ``settings`` (label → plain value), ``region`` (as ``jobs.region_facts`` gives it), ``texts``
    (what was read of each language), ``brake`` and ``benchmarks``. The page loads nothing. The same
    runs give the same bytes.

    Raises ``UserError`` for no run, more runs than can be told apart, two of one name, a run
    without an evaluation after its base's, or a path that cannot be written to.
    """
    _check(runs)
    courses = has_courses(runs)
    write_page(
        path,
        "report/runs.html.j2",
        runs=runs,
        say=_sentences(runs),
        plots=_plots(runs, courses),
        panels=_panels(runs) if courses else [],
        open_panels=OPEN,
        unit=UNITS[measure_of(runs)],
        key=_key(runs),
        tables=_tables(runs),
    )


def _check(runs: Sequence[Run]) -> None:
    if not 1 <= len(runs) <= MOST:
        raise UserError(
            f"expected 1 to {MOST} runs, which a reader can tell apart, got {len(runs)}; show fewer"
        )
    names = Counter(run["name"] for run in runs)
    if twice := [name for name, times in names.items() if times > 1]:
        raise UserError(f"expected a name of its own for each run, got {twice[0]!r} twice")
    for run in runs:
        if len(run["history"]["evaluations"]) < 2:
            raise UserError(
                f"expected an evaluation of the base and one after it, and the run {run['name']!r} "
                f"has {len(run['history']['evaluations'])}; wait until it has been evaluated again"
            )


def _sentences(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "introduction": introduction(runs),
        "seen": [seen(run) for run in runs],
        "no_plane": no_plane(runs),
        "brake": [brake_seen(run) for run in runs if run.get("brake")],
        "subsampled": [said for run in runs if (said := subsampled(run))],
    }


def _plots(runs: Sequence[Run], courses: bool) -> dict[str, dict[str, Markup]]:
    found = {}
    if all(run["history"]["target"] is not None for run in runs):
        found["plane"] = drawn("plane", plane_figure, runs)
    if courses:
        found["course"] = drawn("course", course_figure, runs)
    if common_languages(runs):
        found["forgetting"] = drawn("forgetting", forgetting_figure, runs)
    return found


def _key(runs: Sequence[Run]) -> list[tuple[str, Markup]]:
    """Each run's name and its mark, for the key above the panels."""
    chosen = marks(run["name"] for run in runs)
    return [
        (name, Markup(to_svg(key_figure(mark), f"key-{place}")))
        for place, (name, mark) in enumerate(chosen.items())
    ]


def _panels(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A panel a held-out language, the largest loss that any run's model has of it first."""
    measure = measure_of(runs)
    chosen = marks(run["name"] for run in runs)
    final = {run["name"]: losses(model_evaluation(run)["forgetting"], measure) for run in runs}
    worst = {
        code: max(of_run[code] for of_run in final.values() if code in of_run)
        for of_run in final.values()
        for code in of_run
    }
    across, up = _ranges(runs, measure)
    panels = []
    for place, code in enumerate(sorted(worst, key=lambda code: -worst[code])):
        figure = panel_figure(runs, code, chosen, measure, across, up)
        said = [f"{name} {of_run[code]:+.3g}" for name, of_run in final.items() if code in of_run]
        panels.append(
            {
                "language": code,
                "name": language_name(code),
                "said": f"{language_name(code)}: {', '.join(said)} {UNITS[measure]}",
                "svg": Markup(to_svg(figure, f"panel-{place}")),
            }
        )
    return panels


def _ranges(runs: Sequence[Run], measure: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """The steps and the losses that all panels show, with a little room around."""
    steps = [one["step"] for run in runs for one in run["history"]["evaluations"]]
    values = [0.0]
    for run in runs:
        for one in run["history"]["evaluations"]:
            for code, loss in losses(one["forgetting"], measure).items():
                values += [loss, *(interval(one, code, measure) or ())]
        codes = run["history"]["evaluations"][0]["forgetting"]["languages"]
        limits = [limit(run, code, measure) for code in codes]
        values += [height for height in limits if height is not None]
    return _roomy(min(steps), max(steps)), _roomy(min(values), max(values))


def _roomy(low: float, high: float) -> tuple[float, float]:
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


def _tables(runs: Sequence[Run]) -> dict[str, Any]:
    regions = [run for run in runs if run.get("region")]
    return {
        "runs": runs_table(runs),
        "languages": languages_table(comparison_rows(runs)),
        "breaches": breaches_table(runs),
        "benchmarks": benchmarks_table(runs),
        "texts": texts_tables(runs),
        "regions": [
            (
                run["name"],
                region_table(run["region"]),
                region_places_table(run["region"]),
            )
            for run in regions
        ],
        "differing": settings_table(runs, differing=True),
        "settings": settings_table(runs, differing=False),
    }
