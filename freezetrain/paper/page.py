"""The page of `freezetrain paper`."""

import os
import shlex
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from freezetrain.analysis.figures import NOTHING
from freezetrain.evaluation.texts import TextFacts, texts_table
from freezetrain.formats import (
    amount,
    brief,
    count,
    counted,
    exact_percent,
    fixed,
    language_name,
    listed,
    percent,
)
from freezetrain.paper.figures import paper_figures, removal_name
from freezetrain.paper.results import changed_what, core_of, of_ratio, ratios_of
from freezetrain.paper.tables import (
    dominance_table,
    halves_table,
    jaccard_table,
    kinds_table,
    recurring_table,
    removal_table,
    rise_table,
    scores_table,
    weights_table,
)
from freezetrain.report.page import drawn, settings_table, write_page
from freezetrain.report.tables import Table, location_table, times_table

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
        "paper/page.html.j2",
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
        "introduction": introduction(results),
        "summary": summary(results),
    }
    if results.get("ablation"):
        found["removal"] = removal_seen(results)
    if results.get("dimensions"):
        found["recurring"] = recurring_seen(results)
    if results.get("selectivity"):
        found["selectivity"] = selectivity_seen(results)
    if (results.get("overlap") or {}).get("languages"):
        found["overlap"] = overlap_seen(results)
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
            "table": removal_table(ablation, ratio),
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
            "table": weights_table(one),
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
        "kinds": kinds_table(found),
        "recurring": recurring_table(found) if found["recurring"] else None,
        "places": [location_table(shown, way) for way in ("rows", "columns")],
    }


def _selectivity(results: Results) -> dict[str, Any] | None:
    found = results.get("selectivity")
    if not found:
        return None
    return {
        "ratio": percent(found["ratio"]) if found.get("ratio") else None,
        "dominance": dominance_table(found),
        "rises": rise_table(found),
    }


def _overlaps(results: Results) -> list[dict[str, Any]]:
    """Of each comparison: its heading, its key, its table."""
    overlap = results.get("overlap") or {}
    return [
        {"what": what, "name": name, "table": jaccard_table(overlap[name], of)}
        for name, (what, of) in _OVERLAPS.items()
        if overlap.get(name)
    ]


def _halves(results: Results) -> Table | None:
    halves = (results.get("overlap") or {}).get("halves")
    return halves_table(halves) if halves else None


def _rest(results: Results) -> list[Any]:
    found: list[Any] = []
    if results.get("scores"):
        found.append(scores_table(results["scores"]))
    if results.get("texts"):
        texts = [TextFacts(**facts) for facts in results["texts"]]
        found.append(texts_table(texts, "Held-out texts"))
    found.append(settings_table(results["settings"]))
    return [*found, times_table(results)]


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


def introduction(results: Results) -> str:
    """What was done, on what."""
    model, languages = results["model"], results["languages"]
    core = [language_name(code) for code in languages["core"]]
    return (
        f"In {model['name']}, a language model of {amount(model['parameters'])} weights in "
        f"{counted(model['layers'], 'layer')}, freezetrain scored how much the loss of each of "
        f"{counted(len(languages['scored']), 'language')} depends on every weight, and repeated "
        "on it what “Unveiling Linguistic Regions in Large Language Models” reports. The core "
        f"region, the weights of the highest scores in each matrix, comes from {listed(core)}; "
        f"what is lost was measured on held-out text of "
        f"{counted(len(languages['evaluated']), 'language')}."
    )


def summary(results: Results) -> str:
    """How many of the claims hold."""
    claims = results["claims"]
    known = [one["holds"] for one in claims if one["holds"] is not None]
    unknown = len(claims) - len(known)
    said = f"{sum(known)} of {counted(len(known), 'claim')} of the paper hold on this model"
    return f"{said}; {unknown} could not be told." if unknown else f"{said}."


def removal_seen(results: Results) -> str:
    """Mean, least and largest rise without each kind of region of the first ratio."""
    found = of_ratio(results["ablation"]["summary"], ratios_of(results["ablation"]["summary"])[0])
    parts = []
    for name, one in found.items():
        rises = {code: values["rise"] for code, values in one["languages"].items()}
        least, most = min(rises, key=rises.__getitem__), max(rises, key=rises.__getitem__)
        parts.append(
            f"{name} {brief(fmean(rises.values()))} (from {brief(rises[least])} in "
            f"{language_name(least)} to {brief(rises[most])} in {language_name(most)})"
        )
    return f"Mean rise of the loss, nats per byte, by what was zeroed: {'; '.join(parts)}."


def recurring_seen(results: Results) -> str:
    """The dimension that recurs most, beside chance."""
    dimensions = results["dimensions"]
    if not dimensions["recurring"]:
        return "No dimension of the residual stream is among the fullest of any matrix."
    first, regions = dimensions["recurring"][0], counted(len(dimensions["regions"]), "region")
    return (
        f"Dimension {count(first['dimension'])} of the residual stream is among the fullest "
        f"{percent(dimensions['top'])} in {count(first['times'])} of "
        f"{count(dimensions['possible'])} matrices of {regions}; by chance a dimension is in "
        f"{fixed(dimensions['expected'], 1)} on average."
    )


def selectivity_seen(results: Results) -> str:
    """Which languages the regions hit besides their own."""
    languages = results["selectivity"]["dominance"]["languages"]
    known = {code: one for code, one in languages.items() if one["other"] is not None}
    if not known:
        return ""
    nearest = sorted(known, key=lambda code: -known[code]["largest_other"])[:3]
    parts = [
        f"{language_name(known[code]['other'])} ({brief(known[code]['largest_other'])}) by that of "
        f"{language_name(code)}"
        for code in nearest
    ]
    return f"Hit most by the region of another language, in nats per byte: {listed(parts)}."


def overlap_seen(results: Results) -> str:
    """The two languages whose regions have most in common, and the two with least."""
    found = results["overlap"]["languages"]
    names = found["names"]
    pairs = [
        (found["jaccard"][a][b], names[a], names[b], found["expected"][a][b])
        for a in range(len(names))
        for b in range(a)
    ]
    if not pairs:
        return ""
    most, least = max(pairs), min(pairs)
    return (
        f"Most in common have the regions of {language_name(most[2])} and "
        f"{language_name(most[1])} ({percent(most[0])} of the entries in either are in both), "
        f"least those of {language_name(least[2])} and {language_name(least[1])} "
        f"({percent(least[0])}); on average {percent(fmean(pair[0] for pair in pairs))}, by chance "
        f"{percent(fmean(pair[3] for pair in pairs))}."
    )
