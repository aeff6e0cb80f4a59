"""The page of `freezetrain paper`, and its tables."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from freezetrain.analysis.ablate import Ablation
from freezetrain.analysis.dimensions import DIRECTIONS, Dimensions, location_table
from freezetrain.analysis.effects import NOTHING, Selectivity, effects_table
from freezetrain.analysis.overlap import Overlap, jaccard_table
from freezetrain.analysis.perturb import damage_table
from freezetrain.evaluation.texts import texts_table
from freezetrain.formats import (
    count,
    exact_percent,
    fixed,
    language_and_code,
    percent,
    seconds,
    share,
    signed,
)
from freezetrain.paper.figures import paper_figures, removal_name
from freezetrain.paper.results import Claim, Halves, PaperResults
from freezetrain.report.page import drawn, flat, settings_text, write_page
from freezetrain.tables import Column, Table, facts_table

_OVERLAPS = {
    "languages": ("", "the regions of languages"),
    "whole_model": ("Selected over the whole model", "regions selected over the whole model"),
    "samples": ("From fewer sequences", "cores from fewer sequences"),
    "methods": ("By other scores", "cores by other scores"),
}
"""Part of PaperResults.overlap → its heading on the page, and what its table compares."""


def render_paper(results: PaperResults, path: str | os.PathLike[str]) -> None:
    """Write the page of ``results`` to ``path``, whole or not at all; an older one is replaced.

    The page loads nothing. The same results give the same bytes. Raises ``UserError`` if the path
    cannot be written to.
    """
    dimensions, halves = results.dimensions, results.overlap.halves
    write_page(
        path,
        "paper/page.html.j2",
        results=results,
        plots={name: drawn(name, draw) for name, draw in paper_figures(results).items()},
        removals=_removals(results),
        continued=_continued(results.ablation),
        changes=[
            (changed.title, f"weights-{name}", damage_table(changed))
            for name, changed in results.changed.items()
        ],
        dimensions=dimensions if dimensions is not None and dimensions.regions else None,
        dimension_tables=_dimension_tables(dimensions),
        selectivity_tables=_selectivity_tables(results.selectivity),
        overlaps=_overlaps(results),
        halves=None if halves is None else _halves_table(halves),
        rest=_rest(results),
        commands=_commands(results),
        count=count,
        fixed=fixed,
        percent=percent,
        signed=signed,
    )


def _removals(results: PaperResults) -> list[tuple[str, str, Table]]:
    """Of each ratio: what was removed, the name of its plot, its table."""
    removals = []
    for ratio, effects in results.removed.items():
        assert results.ablation is not None
        what = f"{exact_percent(ratio)} of each matrix"
        title = f"Every language without {what}; rise of the loss in nats per byte, ± over seeds"
        table = effects_table(title, results.ablation.figures[NOTHING], effects)
        removals.append((what, removal_name(ratio), table))
    return removals


@dataclass(frozen=True)
class _Continued:
    """A prompt, and what the model puts after it, by what is zeroed."""

    prompt: str
    shown: Mapping[str, str]
    """With nothing and with the regions of the first ratio zeroed."""
    others: Mapping[str, str]


def _continued(ablation: Ablation | None) -> list[_Continued]:
    if ablation is None:
        return []
    first = next(iter(ablation.regions.values())).ratio
    shown = {name for name, region in ablation.regions.items() if region.ratio == first}
    shown.add(NOTHING)
    return [
        _Continued(
            continuations.prompt,
            {name: text for name, text in continuations.texts.items() if name in shown},
            {name: text for name, text in continuations.texts.items() if name not in shown},
        )
        for continuations in ablation.texts
    ]


def _dimension_tables(dimensions: Dimensions | None) -> dict[str, Table]:
    if dimensions is None or not dimensions.regions:
        return {}
    region = dimensions.regions[dimensions.shown]
    locations: dict[str, Table] = {
        direction: location_table(
            region.shares(direction),
            direction,
            layers=dimensions.layers,
            matrices=dimensions.matrices,
            top=dimensions.top,
            even=dimensions.even[direction],
        )
        for direction in DIRECTIONS
    }
    return {
        "kinds": _kinds_table(dimensions),
        "recurring": _recurring_table(dimensions),
        **locations,
    }


def _kinds_table(dimensions: Dimensions) -> Table:
    """How the shown region gathers on rows and columns of each kind of matrix."""
    region, top = dimensions.regions[dimensions.shown], percent(dimensions.top)
    along = {"rows": "writes: rows", "columns": "reads: columns"}

    def column(title: str, group: str, figure: str, digits: int | None = None) -> Column:
        means = {kind: region.kind_mean(figure, kind) for kind in dimensions.matrices}
        return Column(
            title,
            {**means, _EVEN: dimensions.even[figure]}.get,
            share if digits is None else lambda value: fixed(value, digits),
            group=group,
            foot=_EVEN,
        )

    columns = [
        Column("matrix", str, text=True),
        Column("residual stream", dimensions.directions.get, along.__getitem__, text=True),
        column("rows", f"in the fullest {top}", "rows"),
        column("columns", f"in the fullest {top}", "columns"),
        column("rows", "Gini", "gini_rows", 3),
        column("columns", "Gini", "gini_columns", 3),
    ]
    title = (
        f"How “{dimensions.shown}” gathers on rows and columns, mean over layers: share of a "
        f"matrix’s region entries in the fullest {top}, and Gini coefficient (0: evenly)"
    )
    return Table(title, columns, dimensions.matrices, foot="a random region", sortable=True)


_EVEN = ""  # the kind of matrix of which the foot is made: all, of a random region


def _recurring_table(dimensions: Dimensions) -> Table:
    """The dimensions of the residual stream that are among the fullest most often."""
    columns = [
        Column("dimension", "dimension"),
        Column("times", "times"),
        Column("layers", lambda recurring: len(recurring.layers)),
        Column("regions", lambda recurring: len(recurring.regions)),
        Column("matrices", lambda recurring: ", ".join(recurring.kinds), text=True),
    ]
    title = (
        f"Dimensions of the residual stream among the fullest {percent(dimensions.top)} of rows or "
        f"columns, of {count(dimensions.possible)} matrices of {len(dimensions.regions)} regions; "
        f"by chance {fixed(dimensions.expected, 1)} times"
    )
    return Table(title, columns, dimensions.recurring, sortable=True)


def _selectivity_tables(selectivity: Selectivity | None) -> dict[str, Table]:
    if selectivity is None:
        return {}
    return {"dominance": _dominance_table(selectivity), "rises": _rise_table(selectivity)}


def _dominance_table(selectivity: Selectivity) -> Table:
    """What each language's region does to its own language, and to the others."""
    languages, control = selectivity.dominance.languages, selectivity.control or {}
    columns = [
        Column("region of", str, language_and_code, text=True),
        Column("entries", selectivity.entries.__getitem__),
        Column("own", lambda code: languages[code].own, signed),
        Column("mean of others", lambda code: languages[code].mean_other, signed),
        Column("largest other", lambda code: languages[code].largest_other, signed),
        Column("which", lambda code: languages[code].other, language_and_code, text=True),
        Column("random", lambda code: control.get(code, {}).get(code), signed),
    ]
    title = (
        "Rise of the loss with a language’s region zeroed, nats per byte; random: of the own "
        "language, with as many random weights"
    )
    return Table(title, columns, list(languages), sortable=True)


def _rise_table(selectivity: Selectivity) -> Table:
    """Every number of the picture: regions × languages."""

    def column(code: str) -> Column:
        return Column(code, lambda own: selectivity.rise[own][code], signed)

    title = "Rise of each language’s loss (columns) with the region of a language zeroed (rows)"
    columns = [Column("region of", str, language_and_code, text=True)]
    columns += map(column, selectivity.evaluated)
    return Table(title, columns, selectivity.languages, sortable=True)


@dataclass(frozen=True)
class _OverlapPart:
    """One comparison of regions on the page."""

    heading: str
    name: str
    """As the names of its plots end."""
    table: Table
    seen: str


def _overlaps(results: PaperResults) -> list[_OverlapPart]:
    parts = []
    for name, (heading, what) in _OVERLAPS.items():
        overlap: Overlap | None = getattr(results.overlap, name)
        if overlap is not None:
            table = jaccard_table(overlap, what)
            parts.append(_OverlapPart(heading, name.replace("_", "-"), table, _common(overlap)))
    return parts


def _common(overlap: Overlap) -> str:
    """What regions have in common: mean, by chance, most and least; nothing for one region."""
    if not (pairs := sorted(overlap.pairs(), key=lambda pair: pair.jaccard)):
        return ""
    least, most = (f"{p.a} and {p.b} {percent(p.jaccard)}" for p in (pairs[0], pairs[-1]))
    mean, chance = fmean(pair.jaccard for pair in pairs), fmean(pair.expected for pair in pairs)
    return (
        f"Jaccard index: mean {percent(mean)}, by chance {percent(chance)}; most: {most}; least: "
        f"{least}."
    )


def _halves_table(halves: Halves) -> Table:
    columns = [
        Column("language", 0, language_and_code, text=True),
        Column("Jaccard", 1, lambda jaccard: fixed(jaccard, 3)),
        Column("by chance", 2, fixed),
    ]
    rows = list(zip(halves.names, halves.jaccard, halves.expected, strict=True))
    return Table("Regions of two halves of each language’s texts", columns, rows, sortable=True)


def _scores_table(scores: Mapping[str, Mapping[str, Any]]) -> Table:
    """What each language's scores were made from."""
    columns = [
        Column("language", str, language_and_code, text=True),
        Column("sequences", lambda code: scores[code].get("sequences")),
        Column("tokens", lambda code: scores[code].get("tokens")),
        Column("loss, nats/token", lambda code: scores[code].get("loss"), fixed),
    ]
    methods = ", ".join(dict.fromkeys(made["method"] for made in scores.values()))
    return Table(f"Scored texts ({methods})", columns, list(scores), sortable=True)


def _rest(results: PaperResults) -> list[Table]:
    """What was read, with what settings, and how long it took."""
    settings = {name: settings_text(value) for name, value in flat(results.settings).items()}
    times = {name: seconds(value) for name, value in results.seconds.items()}
    return [
        _scores_table(results.scores),
        texts_table(results.texts, "Held-out texts"),
        facts_table("Settings", settings, ("setting", "value")),
        facts_table("Time", times, ("stage", "time")),
    ]


def claims_table(claims: Sequence[Claim]) -> Table:
    """For the terminal."""
    marks = {True: "holds", False: "does not hold", None: "cannot be told"}
    columns = [
        Column("", lambda claim: marks[claim.holds], text=True),
        Column("the paper's claim", "claim", text=True),
        Column("seen here", "seen", text=True),
    ]
    return Table("the paper on this model", columns, claims)


def _commands(results: PaperResults) -> list[tuple[str, str]]:
    """(What it does, command)"""
    model = shlex.quote(results.model.folder)
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
