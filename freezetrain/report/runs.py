"""`freezetrain report`: runs side by side in one page, and as tables for other programs."""

import os
from dataclasses import replace
from pathlib import Path

from freezetrain.errors import UserError
from freezetrain.files import write_text
from freezetrain.formats import shortest_endings
from freezetrain.report.comparison import (
    forgetting_csv,
    forgetting_markdown,
    language_rows,
    summary_table,
)
from freezetrain.report.recipe import ReportRecipe
from freezetrain.report.run import FORGETTING, Run, read_runs
from freezetrain.report.runs_page import render_runs
from freezetrain.run_folder import Outcome

PAGE = "report.html"


def run(recipe: ReportRecipe, folder: Path) -> Outcome:
    """Leaves report.html, forgetting.csv and forgetting.md."""
    places = [Path(os.path.realpath(path)) for path in recipe.runs]
    names = recipe.names or shortest_endings(
        [str(place.parent if place.name == FORGETTING else place) for place in places]
    )
    if len(names) != len(recipe.runs):
        raise UserError(
            f"expected a name for each of {len(recipe.runs)} runs, got {len(names)}; give as many, "
            "or none"
        )
    runs: list[Run] = []
    for path, name in zip(recipe.runs, names, strict=True):
        held = read_runs(Path(path), name)
        if len(held) > 1 and len(recipe.runs) > 1:
            held = [replace(run, name=f"{name}: {run.name}") for run in held]
        runs += held
    render_runs(runs, folder / PAGE)
    rows = language_rows(runs)
    write_text(folder / "forgetting.csv", forgetting_csv(rows))
    write_text(folder / "forgetting.md", forgetting_markdown(rows))
    results = {"runs": [run.to_dict() for run in runs]}
    return Outcome(results, [summary_table(rows), f"report: {folder / PAGE}"])
