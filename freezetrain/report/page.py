"""One self-contained page from the quickstart's results."""

import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from freezetrain.errors import UserError
from freezetrain.report import plots, sentences, tables
from freezetrain.report.languages import language_name
from freezetrain.report.style import to_svg

WIDTHS = {"wide": 760, "narrow": 350}  # px; the page shows one of them, by the window's width


def render_report(results: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the page to ``path``, whole or not at all; a page that is there is replaced.

    The page loads nothing: plots are inline SVG, and it has no script. The same results give the
    same bytes. Raises ``UserError`` if the path cannot be written to.
    """
    text = render_page(results)
    path = Path(path)
    # In the same folder, as a rename is atomic inside one file system only.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        finally:
            if temporary.exists():
                temporary.unlink()
    except OSError as error:
        raise UserError(
            f"expected a path that a report can be written to, got {str(path)!r} "
            f"({error.strerror}); choose another folder or make room there"
        ) from error


def render_page(results: Mapping[str, Any]) -> str:
    """The page as HTML text."""
    environment = Environment(
        loader=PackageLoader("freezetrain.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["language"] = language_name
    template = environment.get_template("page.html.j2")
    return template.render(
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
    drawn: dict[str, Callable[[Mapping[str, Any], float], Figure]] = {
        "ablation": plots.ablation_figure,
        "forgetting": plots.forgetting_figure,
        "course": plots.course_figure,
    }
    if results["region"]["matrices"] and results["region"]["layers"]:
        drawn["concentration"] = plots.concentration_figure
    if results["region"].get("picture"):
        drawn["entries"] = plots.entries_figure
    return {
        name: {
            size: Markup(to_svg(draw(results, width), f"{name}-{size}"))
            for size, width in WIDTHS.items()
        }
        for name, draw in drawn.items()
    }


def _tables(results: Mapping[str, Any]) -> dict[str, tables.Table]:
    return {
        "ablation": tables.ablation_table(results),
        "forgetting": tables.forgetting_table(results),
        "course": tables.course_table(results),
        "runs": tables.runs_table(results),
        "rows": tables.location_table(results, "rows"),
        "columns": tables.location_table(results, "columns"),
        "settings": tables.settings_table(results),
        "times": tables.times_table(results),
    }


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
