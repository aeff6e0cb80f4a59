"""The quickstart's page: for a person who has never heard of the paper."""

import os
import shlex
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from freezetrain.analysis.figures import ablation_figure, concentration_figure, entries_figure
from freezetrain.evaluation import History
from freezetrain.quickstart import observations as sentences
from freezetrain.quickstart.tables import (
    ablation_table,
    course_table,
    forgetting_table,
    runs_table,
    settings_table,
)
from freezetrain.report.page import drawn, write_page
from freezetrain.report.run import Run
from freezetrain.report.run_plots import course_figure, forgetting_figure
from freezetrain.report.tables import FULLEST, Table, location_table, times_table


def render_report(results: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the page of a quickstart to ``path``, whole or not at all; an older one is replaced.

    The page loads nothing: plots are inline SVG. The same results give the same bytes. Raises
    ``UserError`` if the path cannot be written to.
    """
    write_page(
        path,
        "quickstart/page.html.j2",
        results=results,
        say={name: getattr(sentences, name)(results) for name in _SENTENCES},
        plots=_plots(results),
        tables=_tables(results),
        files=_files(results),
        commands=_commands(results),
    )


_SENTENCES = (
    "introduction",
    "ablation_seen",
    "forgetting_seen",
    "course_seen",
    "location_seen",
    "verify_seen",
)


def _plots(results: Mapping[str, Any]) -> dict[str, dict[str, Markup]]:
    runs = [Run(name, History.from_dict(run)) for name, run in results["runs"].items()]
    found = {
        "ablation": drawn("ablation", ablation_figure, results),
        "forgetting": drawn("forgetting", forgetting_figure, runs),
        "course": drawn("course", course_figure, runs),
    }
    if results["region"]["matrices"] and results["region"]["layers"]:
        found["concentration"] = drawn("concentration", concentration_figure, _place(results))
    if results["region"].get("picture"):
        found["entries"] = drawn("entries", entries_figure, results)
    return found


def _tables(results: Mapping[str, Any]) -> dict[str, Table]:
    return {
        "ablation": ablation_table(results),
        "forgetting": forgetting_table(results),
        "course": course_table(results),
        "runs": runs_table(results),
        "rows": location_table(_place(results), "rows"),
        "columns": location_table(_place(results), "columns"),
        "settings": settings_table(results),
        "times": times_table(results),
    }


def _place(results: Mapping[str, Any]) -> dict[str, Any]:
    """Where the region lies, with the share of rows and columns that it was counted in."""
    return {**results["region"], "top": FULLEST}


def _files(results: Mapping[str, Any]) -> dict[str, str]:
    """File or folder beside the page → what it holds."""
    files = {
        "results.json": "all figures of this page, for machines",
        results["region"]["file"]: "the core region",
    }
    for name, run in results["runs"].items():
        if run.get("model"):
            files[f"{run['model']}/"] = f"the model of the run “{name}”, in Hugging Face format"
            if "/" in run["model"]:
                logs = f"{run['model'].rpartition('/')[0]}/tensorboard/"
                files[logs] = f"the course of the run “{name}”, for TensorBoard"
    return files


def _commands(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(What it does, command); TEXTS stands for a folder of the reader's."""
    region, target = shlex.quote(results["region"]["file"]), shlex.quote(results["target"])
    model = shlex.quote(results["model"]["folder"])
    commands = [
        (
            "Train further with the region frozen, on texts of your own",
            f"freezetrain train --model {model} --region {region} --texts TEXTS "
            f"--languages+={target}",
        ),
        (
            "See what a region does to every language",
            f"freezetrain ablate --model {model} --regions+={region}",
        ),
        ("Look into the region", f"freezetrain info {region}"),
    ]
    adapted = {name: run["model"] for name, run in results["runs"].items() if run.get("model")}
    if frozen := [name for name in adapted if name != "plain"]:
        folder = shlex.quote(adapted[frozen[0]])
        commands += [
            (
                "Compare model and region with the base, bit for bit",
                f"freezetrain verify {model} {folder} {region}",
            ),
            (
                "Compare two models, language by language",
                f"freezetrain forgetting {model} {folder} --target {target}",
            ),
        ]
    own = ("Run all this on a model of your own", "freezetrain quickstart --model PATH_OR_ID")
    return [*commands, own]
