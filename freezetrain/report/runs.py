"""`freezetrain report`: runs side by side in one page, and as tables for other programs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.markup import escape
from rich.table import Table

from freezetrain.errors import UserError
from freezetrain.evaluation import History
from freezetrain.files import write_text
from freezetrain.formats import shortest_endings, signed, signed_percent
from freezetrain.recipe import yaml12
from freezetrain.report.comparison import MEAN, comparison_rows, to_markdown, write_csv
from freezetrain.report.page import flat
from freezetrain.report.recipe import ReportRecipe
from freezetrain.report.runs_page import render_runs
from freezetrain.run_folder import Outcome

FORGETTING = "forgetting.json"

PAGE = "report.html"

Run = dict[str, Any]


def run(recipe: ReportRecipe, folder: Path) -> Outcome:
    """Leaves report.html, forgetting.csv and forgetting.md."""
    places = [Path(path).resolve() for path in recipe.runs]
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
        found = runs_at(Path(path), name)
        if len(found) > 1 and len(recipe.runs) > 1:
            found = [{**one, "name": f"{name}: {one['name']}"} for one in found]
        runs += found
    render_runs(runs, folder / PAGE)
    rows = comparison_rows(runs)
    write_csv(rows, folder / "forgetting.csv")
    write_text(folder / "forgetting.md", to_markdown(rows))
    return Outcome({"runs": runs}, [_table(rows), f"report: {folder / PAGE}"])


def train_run(
    folder: Path, name: str, settings: Mapping[str, Any], results: Mapping[str, Any]
) -> Run:
    """The run that ``train`` left in ``folder``, for ``render_runs``.

    ``settings``: the recipe, nested; ``results``: those of ``results.json``, as far as there are.
    """
    return {
        "name": name,
        "history": _history(folder / FORGETTING),
        "settings": flat(settings),
        "region": results.get("region"),
        "texts": results.get("texts"),
        "brake": results.get("brake"),
        "average": results.get("forgetting_of_average"),
        "benchmarks": None,
    }


def runs_at(path: Path, name: str) -> list[Run]:
    """The runs in a folder of ``train``, ``forgetting`` or ``quickstart``, or in a history's file.

    A single run is called ``name``. Raises ``UserError`` where there is none, or one that cannot be
    read.
    """
    if path.is_file():
        return [{"name": name, "history": _history(path)}]
    results = _json(path / "results.json") if (path / "results.json").is_file() else {}
    held = results.get("runs")
    if isinstance(held, list):  # forgetting, or an earlier report
        return [{**one, "name": name} for one in held] if len(held) == 1 else held
    if isinstance(held, dict):  # quickstart
        settings = flat(_recipe(path))
        return [{"name": one, "history": run, "settings": settings} for one, run in held.items()]
    if (path / FORGETTING).is_file():
        return [train_run(path, name, _recipe(path), results)]
    raise UserError(
        f"expected a folder of train, forgetting or quickstart, or a {FORGETTING}, at {path}, and "
        f"there is {'no evaluation in it' if path.is_dir() else 'nothing'}; give a run whose watch "
        "was on"
    )


def _history(path: Path) -> dict[str, Any]:
    history = _json(path)
    try:
        _check_languages(History.from_dict(history))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"expected the evaluations that a ForgettingTracker of this version writes in {path}, "
            f"and they cannot be read ({error}); give another file"
        ) from error
    return history


def _check_languages(history: History) -> None:
    """``ValueError`` unless every evaluation is of the same languages."""
    for one in history.evaluations:
        held_out = history.base.figures.keys() - {history.target}
        if one.figures.keys() != history.base.figures.keys() or (
            one.forgetting.languages.keys() != held_out
        ):
            raise ValueError(f"step {one.step} is not of the languages of the first evaluation")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; give another run") from error
    if not isinstance(found, dict):
        raise UserError(f"expected a mapping in {path}, got {type(found).__name__}; give a run")
    return found


def _recipe(folder: Path) -> Mapping[str, Any]:
    path = folder / "recipe.yaml"
    try:
        return yaml12.load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; give another run") from error


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="against the base, nats per byte", title_justify="left")
    table.add_column("run", overflow="fold")
    for heading in ("step", "target's gain", "mean loss", "relative"):
        table.add_column(heading, justify="right")
    gains = {row["model"]: -row["delta_nll_per_byte"] for row in rows if row["role"] == "target"}
    for row in rows:
        if row["role"] == MEAN:
            gain = gains.get(row["model"])
            told = "–" if gain is None else signed(gain)
            loss = signed(row["delta_nll_per_byte"])
            relative = signed_percent(row["relative"])
            table.add_row(escape(row["model"]), f"{row['step']:,}", told, loss, relative)
    return table
