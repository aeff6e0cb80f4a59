"""The tables of the paper's page."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from freezetrain.analysis.figures import NOTHING
from freezetrain.formats import (
    count,
    exact_percent,
    fixed,
    language_and_code,
    percent,
    perplexity,
    signed,
)
from freezetrain.paper.results import changed_what, core_of, mean_share, of_ratio, weight_name
from freezetrain.report.tables import Cell, Table, share_cell

Results = Mapping[str, Any]

Row = list[str | Cell]

_NOTED = 8  # regions up to which what chance gives is noted in each cell


def removal_table(ablation: Results, ratio: float | None) -> Table:
    """A row a language: as it is, then without each kind of region of ``ratio``."""
    found, figures = of_ratio(ablation["summary"], ratio), ablation["figures"]
    columns, groups = ["language", "perplexity", "bits/byte"], [("", 1), ("nothing zeroed", 2)]
    for name, one in found.items():
        columns += ["perplexity", "bits/byte", "rise"]
        many = f", mean of {len(one['regions'])}" if len(one["regions"]) > 1 else ""
        groups.append((f"{name} zeroed{many}", 3))
    rows: list[Row] = []
    for code, before in figures[NOTHING].items():
        label = language_and_code(code)
        row: Row = [Cell(label, label), _perplexity(before["perplexity"]), _bits(before)]
        for one in found.values():
            language = one["languages"][code]
            bits = fmean(figures[name][code]["bits_per_byte"] for name in one["regions"])
            row += [
                _perplexity(language["perplexity"]),
                Cell(fixed(bits), bits),
                _with_spread(language),
            ]
        rows.append(row)
    foot: Row = ["mean", "", ""]
    for one in found.values():
        mean = {"rise": one["mean_rise"], "spread": one["spread"]}
        foot += ["", "", _with_spread(mean)]
    what = "the given regions" if ratio is None else f"{exact_percent(ratio)} of each matrix"
    return Table(
        f"Every language without {what}; rise of the loss in nats per byte, ± over random regions",
        columns,
        rows,
        groups=groups,
        foot=[foot],
        sortable=True,
        broad=True,
    )


def _bits(figures: Results) -> Cell:
    return Cell(fixed(figures["bits_per_byte"]), figures["bits_per_byte"])


def _perplexity(value: float | None) -> Cell:
    return Cell(perplexity(value), 1e308 if value is None else value)


def _with_spread(one: Results) -> Cell:
    spread = "" if one["spread"] is None else f"±{fixed(one['spread'])}"
    return Cell(signed(one["rise"]), one["rise"], spread)


def weights_table(found: Results) -> Table:
    """What was changed, each alone: by score (or name) and at random; most harmful first."""
    rows: list[Row] = []
    every = [
        (one["mean_rise"], how, one)
        for key, how in (("weights", "chosen"), ("random", "random"))
        for one in found[key]
    ]
    for mean, how, one in sorted(every, key=lambda ranked: -ranked[0]):
        worst = max(one["rise"], key=one["rise"].__getitem__)
        before, after = found["before"][worst], one["perplexity"][worst]
        rows.append(
            [
                Cell(weight_name(one), weight_name(one)),
                how,
                _plain(one["value"]),
                _plain(one["score"]),
                Cell(signed(mean, 5), mean),
                language_and_code(worst),
                Cell(signed(one["rise"][worst], 5), one["rise"][worst]),
                f"{perplexity(before)} → {perplexity(after)}",
            ]
        )
    columns = ["weight", "", "value", "score", "mean rise", "worst language", "its rise"]
    title = f"{changed_what(found)}, each alone; rise of the loss in nats per byte"
    return Table(title, [*columns, "its perplexity"], rows, texts=(0, 1, 5, 7), sortable=True)


def _plain(value: float | None) -> Cell:
    return Cell("–") if value is None else Cell(f"{value:.4g}".replace("-", "−"), value)


def kinds_table(dimensions: Results) -> Table:
    """How the shown region gathers on rows and columns of each kind of matrix."""
    region, even = dimensions["regions"][core_of(dimensions)], dimensions["even"]
    figures = ("rows", "columns", "gini_rows", "gini_columns")
    rows: list[Row] = []
    for kind in dimensions["matrices"]:
        shares = [mean_share(region[figure], kind) for figure in figures]
        way = dimensions.get("directions", {}).get(kind, "")
        runs = {"rows": "writes: rows", "columns": "reads: columns"}.get(way, "–")
        rows.append([Cell(kind, kind), runs, *_shares(shares)])
    foot: Row = ["a random region", "", *_shares([even[figure] for figure in figures])]
    top = percent(dimensions["top"])
    return Table(
        f"How “{core_of(dimensions)}” gathers on rows and columns, mean over layers: share of a "
        f"matrix’s region entries in the fullest {top}, and Gini coefficient (0: evenly)",
        ["matrix", "residual stream", *(("rows", "columns") * 2)],
        rows,
        texts=(0, 1),
        groups=[("", 2), (f"in the fullest {top}", 2), ("Gini", 2)],
        foot=[foot],
        sortable=True,
    )


def _shares(values: Sequence[float]) -> list[Cell]:
    return [*map(share_cell, values[:2]), *(Cell(fixed(value, 3), value) for value in values[2:])]


def recurring_table(dimensions: Results) -> Table:
    """The dimensions of the residual stream that are among the fullest most often."""
    rows: list[Row] = [
        [
            Cell(count(one["dimension"]), one["dimension"]),
            Cell(count(one["times"]), one["times"]),
            Cell(count(len(one["layers"])), len(one["layers"])),
            Cell(count(len(one["regions"])), len(one["regions"])),
            ", ".join(one["kinds"]),
        ]
        for one in dimensions["recurring"]
    ]
    return Table(
        f"Dimensions of the residual stream among the fullest {percent(dimensions['top'])} of "
        f"rows or columns, of {count(dimensions['possible'])} matrices of "
        f"{len(dimensions['regions'])} regions; by chance {fixed(dimensions['expected'], 1)} times",
        ["dimension", "times", "layers", "regions", "matrices"],
        rows,
        texts=(4,),
        sortable=True,
    )


def dominance_table(found: Results) -> Table:
    """What each language's region does to its own language, and to the others."""
    rows: list[Row] = []
    for code, one in found["dominance"]["languages"].items():
        label = language_and_code(code)
        control = (found.get("control") or {}).get(code, {}).get(code)
        row: Row = [Cell(label, label), Cell(count(found["entries"][code]), found["entries"][code])]
        row += [_rise(one["own"]), _rise(one["mean_other"]), _rise(one["largest_other"])]
        row += ["–" if one["other"] is None else language_and_code(one["other"]), _rise(control)]
        rows.append(row)
    columns = ["region of", "entries", "own", "mean of others", "largest other", "which", "random"]
    return Table(
        "Rise of the loss with a language’s region zeroed, nats per byte; random: of the own "
        "language, with as many random weights",
        columns,
        rows,
        texts=(0, 5),
        sortable=True,
    )


def _rise(value: float | None) -> Cell:
    return Cell("–") if value is None else Cell(signed(value), value)


def rise_table(found: Results) -> Table:
    """Every number of the picture: regions × languages."""
    rows: list[Row] = [
        [language_and_code(own), *(_rise(found["rise"][own][code]) for code in found["evaluated"])]
        for own in found["languages"]
    ]
    title = "Rise of each language’s loss (columns) with the region of a language zeroed (rows)"
    return Table(title, ["region of", *found["evaluated"]], rows, sortable=True, broad=True)


def jaccard_table(found: Results, of: str) -> Table:
    """Each region with each; what chance gives is noted where there is room."""
    noted = len(found["names"]) <= _NOTED
    rows: list[Row] = []
    for name, shares, expected in zip(
        found["names"], found["jaccard"], found["expected"], strict=True
    ):
        cells = [
            Cell(fixed(share, 3), share, f"chance {fixed(chance, 3)}" if noted else "")
            for share, chance in zip(shares, expected, strict=True)
        ]
        rows.append([language_and_code(name), *cells])
    title = f"Jaccard of {of}: entries in both regions over entries in either"
    return Table(title, ["region", *found["names"]], rows, sortable=True, broad=True)


def halves_table(found: Results) -> Table:
    rows = [
        [
            Cell(language_and_code(name), language_and_code(name)),
            Cell(fixed(share, 3), share),
            Cell(fixed(chance, 4), chance),
        ]
        for name, share, chance in zip(
            found["names"], found["jaccard"], found["expected"], strict=True
        )
    ]
    columns = ["language", "Jaccard", "by chance"]
    return Table("Regions of two halves of each language’s texts", columns, rows, sortable=True)


def scores_table(scores: Mapping[str, Results]) -> Table:
    """What each language's scores were made from."""
    rows = []
    for code, made in scores.items():
        label = language_and_code(code)
        numbers = [made.get("sequences"), made.get("tokens")]
        loss = made.get("loss")
        rows.append(
            [
                Cell(label, label),
                *(Cell("–") if n is None else Cell(count(n), n) for n in numbers),
                Cell("–") if loss is None else Cell(fixed(loss), loss),
            ]
        )
    methods = " and ".join(dict.fromkeys(made["method"] for made in scores.values()))
    columns = ["language", "sequences", "tokens", "loss, nats/token"]
    return Table(f"Scored texts ({methods})", columns, rows, sortable=True)
