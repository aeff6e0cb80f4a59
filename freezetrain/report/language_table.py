"""Languages × runs: the table that the reader sorts."""

from collections.abc import Mapping, Sequence
from typing import Any

from freezetrain.report.comparison import MEAN, interval_text
from freezetrain.report.languages import language_and_code
from freezetrain.report.numbers import fixed, perplexity, ratio, signed, signed_percent
from freezetrain.report.tables import Cell, Table, share_cell

_VERDICTS = {
    "forgotten": "▲\u00a0forgotten",
    "improved": "▼\u00a0improved",
    "no": "within\u00a0noise",
}
_BEFORE = ("perplexity", "bits/byte", "accuracy")
_NOISE = "beyond noise"
_AFTER = ("Δ nats/byte", _NOISE, "relative", "ratio", "perplexity", "accuracy")


def languages_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Languages × runs, of ``comparison_rows``; the worst of the first run on top.

    What the base gave stands once where it is the same for all runs, else beside each run.
    """
    found = {(row["model"], row["language"]): row for row in rows if row["role"] != MEAN}
    means = {row["model"]: row for row in rows if row["role"] == MEAN}
    languages = list(dict.fromkeys(code for _, code in found))
    shared = all(
        len({_base(found[name, code]) for name in means if (name, code) in found}) == 1
        for code in languages
    )
    columns, groups = ["language"], [("", 1)]
    foot: list[str | Cell] = ["mean of held-out"]
    for name, mean in means.items():
        columns += [*_AFTER, *(() if shared else [f"base: {head}" for head in _BEFORE])]
        groups.append((name, len(columns) - sum(span for _, span in groups)))
        foot += [_change(mean), _verdict(mean), signed_percent(mean["relative"])]
        foot += [""] * (len(columns) - len(foot))
    if shared:
        columns += _BEFORE
        groups.append(("base", len(_BEFORE)))
        foot += [""] * len(_BEFORE)
    written = []
    for code in sorted(languages, key=lambda code: _rank(found, list(means), code)):
        of_code = [found.get((name, code)) for name in means]
        known = next(row for row in of_code if row is not None)
        label = language_and_code(code)
        written.append(
            [
                Cell(label, label, "target" if known["role"] == "target" else ""),
                *(cell for row in of_code for cell in _cells(row, shared)),
                *(_before(known) if shared else ()),
            ]
        )
    return Table(
        "Every language against the base; Δ above 0 is forgotten, its 95% interval below it",
        columns,
        written,
        texts=(0, *(place for place, head in enumerate(columns) if head == _NOISE)),
        groups=groups,
        foot=[foot],
        sortable=True,
        broad=True,
    )


def _base(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["base_tokens"], row["base_perplexity"], row["base_bits_per_byte"]


def _rank(
    found: Mapping[tuple[str, str], Mapping[str, Any]], names: Sequence[str], code: str
) -> tuple[bool, float]:
    """The target on top, then the languages that the first run to have them forgot most."""
    row = next(found[name, code] for name in names if (name, code) in found)
    return row["role"] != "target", -row["delta_nll_per_byte"]


def _before(row: Mapping[str, Any]) -> list[Cell]:
    return [
        Cell(perplexity(row["base_perplexity"]), row["base_perplexity"]),
        Cell(fixed(row["base_bits_per_byte"]), row["base_bits_per_byte"]),
        share_cell(row["base_accuracy"]),
    ]


def _cells(row: Mapping[str, Any] | None, shared: bool) -> list[str | Cell]:
    if row is None:
        return ["–"] * (len(_AFTER) + (0 if shared else len(_BEFORE)))
    return [
        _change(row),
        _verdict(row),
        Cell(signed_percent(row["relative"]), row["relative"]),
        Cell(ratio(row["perplexity_ratio"]), row["perplexity_ratio"]),
        Cell(perplexity(row["perplexity"]), row["perplexity"]),
        share_cell(row["accuracy"]),
        *(() if shared else _before(row)),
    ]


def _change(row: Mapping[str, Any]) -> Cell:
    change = row["delta_nll_per_byte"]
    return Cell(signed(change), change, interval_text(row))


def _verdict(row: Mapping[str, Any]) -> Cell:
    if row["beyond_noise"] is None:
        return Cell("–")
    learnt = {"improved": "▼\u00a0learnt"} if row["role"] == "target" else {}
    return Cell((_VERDICTS | learnt)[row["beyond_noise"]], row["beyond_noise"])
