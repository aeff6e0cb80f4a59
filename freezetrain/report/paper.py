"""The page of the whole paper: what it claims, and what is seen of it on the model at hand."""

import os
import shlex
from collections.abc import Mapping
from typing import Any

from freezetrain.report import paper_sentences, paper_tables, run_tables, tables
from freezetrain.report.numbers import exact_percent, percent
from freezetrain.report.page import drawn, write_page
from freezetrain.report.paper_figures import paper_figures, removal_name
from freezetrain.report.paper_reading import changed_what, core_of
from freezetrain.report.plots.ablation import NOTHING
from freezetrain.report.plots.removal import ratios_of
from freezetrain.report.settings import flat

Results = Mapping[str, Any]

_OVERLAPS = {
    "languages": ("", "the regions of languages"),
    "whole model": ("Selected over the whole model", "regions selected over the whole model"),
    "samples": ("From fewer sequences", "cores from fewer sequences"),
    "methods": ("By other scores", "cores by other scores"),
}


def render_paper(results: Results, path: str | os.PathLike[str]) -> None:
    """Write the page of ``results`` to ``path``, whole or not at all; an older one is replaced.

    ``results``, as `freezetrain paper` leaves them: ``model``, ``languages`` (``scored``, ``core``,
    ``evaluated``), ``settings``, ``claims`` (of :func:`paper_claims`), ``seconds``; and, each where
    it was looked at, ``scores``, ``texts``, ``ablation``, ``weights``, ``dimensions``,
    ``selectivity``, ``overlap``. The page loads nothing. The same results give the same bytes.
    Raises ``UserError`` if the path cannot be written to.
    """
    figures = {name: drawn(name, draw) for name, draw in paper_figures(results).items()}
    write_page(
        path,
        "paper.html.j2",
        results=results,
        plots=figures,
        say=_sentences(results),
        removals=_removals(results),
        continued=_continued(results),
        changes=_changes(results),
        dimensions=_dimensions(results),
        selectivity=_selectivity(results),
        overlaps=_overlaps(results),
        halves=_halves(results),
        rest=_rest(results),
        commands=_commands(results),
    )


def _sentences(results: Results) -> dict[str, str]:
    found = {
        "introduction": paper_sentences.introduction(results),
        "summary": paper_sentences.summary(results),
    }
    if results.get("ablation"):
        found["removal"] = paper_sentences.removal_seen(results)
    if results.get("dimensions"):
        found["recurring"] = paper_sentences.recurring_seen(results)
    if results.get("selectivity"):
        found["selectivity"] = paper_sentences.selectivity_seen(results)
    if (results.get("overlap") or {}).get("languages"):
        found["overlap"] = paper_sentences.overlap_seen(results)
    return found


def _removals(results: Results) -> list[dict[str, Any]]:
    """Of each ratio: what was removed, the name of its plot, its table."""
    if not (ablation := results.get("ablation")):
        return []
    return [
        {
            "what": "the given regions"
            if ratio is None
            else f"{exact_percent(ratio)} of each matrix",
            "plot": removal_name(ratio),
            "table": paper_tables.removal_table(ablation, ratio),
        }
        for ratio in ratios_of(ablation["summary"])
    ]


def _continued(results: Results) -> list[dict[str, Any]]:
    """Of each prompt: the text with nothing and with the first regions zeroed, then the others."""
    found = []
    for one in (results.get("ablation") or {}).get("texts") or ():
        regions, texts = results["ablation"]["regions"], dict(one["texts"])
        first = next(iter(regions.values()))["ratio"]
        shown = {
            name: text
            for name, text in texts.items()
            if name == NOTHING or regions[name]["ratio"] == first
        }
        others = {name: text for name, text in texts.items() if name not in shown}
        found.append({"prompt": one["prompt"], "shown": shown, "others": others})
    return found


def _changes(results: Results) -> list[dict[str, Any]]:
    return [
        {
            "what": changed_what(one),
            "plot": f"weights-{name}",
            "table": paper_tables.weights_table(one),
        }
        for name, one in (results.get("weights") or {}).items()
        if one and one["weights"]
    ]


def _dimensions(results: Results) -> dict[str, Any] | None:
    found = results.get("dimensions")
    if not found or not found["regions"]:
        return None
    shown = {**found, **found["regions"][core_of(found)], "even": found["even"]}
    return {
        "region": core_of(found),
        "top": percent(found["top"]),
        "even": {way: percent(found["even"][way]) for way in ("rows", "columns")},
        "kinds": paper_tables.kinds_table(found),
        "recurring": paper_tables.recurring_table(found) if found["recurring"] else None,
        "places": [tables.location_table(shown, way) for way in ("rows", "columns")],
    }


def _selectivity(results: Results) -> dict[str, Any] | None:
    found = results.get("selectivity")
    if not found:
        return None
    return {
        "ratio": percent(found["ratio"]) if found.get("ratio") else None,
        "dominance": paper_tables.dominance_table(found),
        "rises": paper_tables.rise_table(found),
    }


def _overlaps(results: Results) -> list[dict[str, Any]]:
    """Of each comparison: its heading, its key, its table."""
    overlap = results.get("overlap") or {}
    return [
        {"what": what, "name": name, "table": paper_tables.jaccard_table(overlap[name], of)}
        for name, (what, of) in _OVERLAPS.items()
        if overlap.get(name)
    ]


def _halves(results: Results) -> tables.Table | None:
    halves = (results.get("overlap") or {}).get("halves")
    return paper_tables.halves_table(halves) if halves else None


def _rest(results: Results) -> list[tables.Table]:
    found = []
    if results.get("scores"):
        found.append(paper_tables.scores_table(results["scores"]))
    if results.get("texts"):
        found.append(run_tables.read_table("Held-out texts", results["texts"]))
    run = {"name": results["model"]["name"], "settings": flat(results["settings"])}
    found.append(run_tables.settings_table([run], differing=False))
    return [*found, tables.times_table(results)]


def _commands(results: Results) -> list[tuple[str, str]]:
    """(What it does, command)"""
    model = shlex.quote(results["model"]["folder"])
    return [
        (
            "Train further with the core frozen, on texts of your own",
            f"freezetrain train --model {model} --region REGION --texts TEXTS "
            "--languages+=LANGUAGE",
        ),
        (
            "See what a region does to every language",
            f"freezetrain ablate --model {model} --regions+=REGION",
        ),
        ("Compare regions", "freezetrain overlap REGION REGION"),
        ("Look into a region", "freezetrain info REGION"),
    ]
