"""Languages × models as plain rows: for CSV, for Markdown, for the table of the page."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from freezetrain.evaluation.figures import finite_or_none, safe_exp
from freezetrain.files import write_text
from freezetrain.formats import (
    fixed,
    language_and_code,
    perplexity,
    ratio,
    signed,
    signed_percent,
)
from freezetrain.report.run import model_evaluation
from freezetrain.report.tables import Cell, Table, share_cell

COLUMNS = (
    "model",
    "step",
    "language",
    "role",  # target, held-out, or mean: that of the held-out languages
    "documents",
    "bytes",
    "base_tokens",
    "base_perplexity",
    "base_nll_per_byte",
    "base_bits_per_byte",
    "base_accuracy",
    "tokens",
    "perplexity",
    "nll_per_byte",
    "bits_per_byte",
    "accuracy",
    "delta_nll_per_byte",  # after minus base: above 0 is forgotten
    "standard_error",
    "interval_low",
    "interval_high",
    "relative",
    "perplexity_ratio",
    "beyond_noise",  # forgotten, improved, no; empty without an interval
)

MEAN = "mean"


def comparison_rows(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each language of each run, and one for the mean of its held-out languages.

    ``runs`` as ``render_runs`` takes them. The model of a run is that of its last evaluation, or of
    the step that its brake went back to. A row has the keys ``COLUMNS``; NLL in nats, intervals are
    of 95%, and what is not known is None. A perplexity past the float range is None, too.
    """
    return [row for run in runs for row in _rows_of(run)]


def write_csv(
    rows: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    columns: Sequence[str] = COLUMNS,
) -> None:
    """Write ``rows`` with a header of ``columns``, numbers in full; None is an empty field.

    Raises ``UserError`` if the path cannot be written to.
    """
    written = io.StringIO()
    writer = csv.DictWriter(written, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, written.getvalue())


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of ``rows`` for an issue or a paper, with a line on what its columns are."""
    models = len({row["model"] for row in rows}) > 1
    heads = ["model"] * models + ["language", "bits/byte before", "after", "Δ nats/byte"]
    heads += ["95% interval", "relative", "perplexity ×", "beyond noise"]
    lines = [heads, [":--"] * (1 + models) + ["--:"] * 6 + [":--"]]
    for row in rows:
        label = f"{row['language']} (target)" if row["role"] == "target" else row["language"]
        if row["role"] == MEAN:
            label = "**mean of held-out**"
        cells = [row["model"]] * models + [label]
        for name in ("base_bits_per_byte", "bits_per_byte"):
            cells.append("" if row[name] is None else fixed(row[name]))
        cells += [signed(row["delta_nll_per_byte"]), interval_text(row)]
        cells += [
            signed_percent(row["relative"]),
            ratio(row["perplexity_ratio"]),
            row["beyond_noise"] or "",
        ]
        lines.append(cells)
    return (
        f"{markdown(lines)}\n\nΔ: loss (NLL) after minus before on the same held-out text; above 0 "
        "is forgotten. Relative: Δ as a share of the loss before.\n"
    )


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """``lines`` of cells as a table, whatever the cells hold."""
    return "\n".join(f"| {' | '.join(map(_escaped, cells))} |" for cells in lines)


def beyond_noise(interval: Sequence[float] | None) -> str | None:
    """``forgotten`` or ``improved`` where an interval of Δ leaves 0 out, else ``no``."""
    if interval is None:
        return None
    low, high = interval
    return "forgotten" if low > 0 else "improved" if high < 0 else "no"


def interval_text(row: Mapping[str, Any]) -> str:
    """``+0.0912 to +0.1188``; nothing where a row has no interval."""
    if row["interval_low"] is None:
        return ""
    return f"{signed(row['interval_low'])} to {signed(row['interval_high'])}"


def _rows_of(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    history, evaluation = run["history"], model_evaluation(run)
    base, change = history["evaluations"][0], evaluation["forgetting"]
    target = change["target"]
    rows = []
    for language, after in evaluation["figures"].items():
        row = dict.fromkeys(COLUMNS)
        row |= {"model": run["name"], "step": evaluation["step"], "language": language}
        row |= {name: after.get(name) for name in ("documents", "bytes")}
        before, same = base["figures"][language], _figures(after)
        if language == target:
            found = _target(change, before, after)
        else:
            found = _held_out(change, language)
        if before["bytes"] == after["bytes"]:
            earlier = _figures(before)
        else:
            earlier = _of_the_same_documents(same, found)
        row |= {f"base_{name}": value for name, value in earlier.items()}
        rows.append({**row, **same, **found})
    mean = dict.fromkeys(COLUMNS) | {"model": run["name"], "step": evaluation["step"]}
    mean |= {"language": MEAN, "role": MEAN}
    of_mean = {"delta_nll_per_byte": change["mean"], "relative": change.get("relative_mean")}
    return [*rows, mean | _change(of_mean, change.get("mean_interval"))]


def _figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "tokens": figures["tokens"],
        "perplexity": figures["perplexity"],
        "nll_per_byte": figures["nll"] / figures["bytes"],
        "bits_per_byte": figures["bits_per_byte"],
        "accuracy": figures.get("accuracy"),
    }


def _change(found: Mapping[str, Any], interval: Sequence[float] | None) -> dict[str, Any]:
    low, high = (None, None) if interval is None else interval
    return {
        "delta_nll_per_byte": found["delta_nll_per_byte"],
        "standard_error": found.get("standard_error"),
        "interval_low": low,
        "interval_high": high,
        "relative": found.get("relative"),
        "perplexity_ratio": found.get("perplexity_ratio"),
        "beyond_noise": beyond_noise(interval),
    }


def _held_out(change: Mapping[str, Any], language: str) -> dict[str, Any]:
    found = change["languages"][language]
    return {"role": "held-out"} | _change(found, found.get("interval"))


def _target(
    change: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, Any]:
    """The target's Δ is its gain with the sign turned; a ratio where the tokens are the same."""
    delta, interval = 0.0 - change["target_gain"], change.get("target_gain_interval")
    turned = None if interval is None else (0.0 - interval[1], 0.0 - interval[0])
    per_byte = after["nll"] / after["bytes"]
    found = {"delta_nll_per_byte": delta, "relative": delta / (per_byte - delta)}
    # Other bytes are a subsample of a run's own documents, and so of the same tokens.
    if before["bytes"] != after["bytes"] or before["tokens"] == after["tokens"]:
        ratio = safe_exp(delta * after["bytes"] / after["tokens"])
        found["perplexity_ratio"] = finite_or_none(ratio)
    return {"role": "target"} | _change(found, turned)


def _of_the_same_documents(after: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """What the base gives on a subsample, as far as it follows from the paired difference."""
    per_byte = after["nll_per_byte"] - found["delta_nll_per_byte"]
    ratio, perplexity = found["perplexity_ratio"], after["perplexity"]
    return {
        "tokens": after["tokens"],
        "perplexity": None if perplexity is None or not ratio else perplexity / ratio,
        "nll_per_byte": per_byte,
        "bits_per_byte": per_byte / math.log(2),
        "accuracy": None,
    }


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


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
        foot += [_change_cell(mean), _verdict(mean), signed_percent(mean["relative"])]
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
        _change_cell(row),
        _verdict(row),
        Cell(signed_percent(row["relative"]), row["relative"]),
        Cell(ratio(row["perplexity_ratio"]), row["perplexity_ratio"]),
        Cell(perplexity(row["perplexity"]), row["perplexity"]),
        share_cell(row["accuracy"]),
        *(() if shared else _before(row)),
    ]


def _change_cell(row: Mapping[str, Any]) -> Cell:
    change = row["delta_nll_per_byte"]
    return Cell(signed(change), change, interval_text(row))


def _verdict(row: Mapping[str, Any]) -> Cell:
    if row["beyond_noise"] is None:
        return Cell("–")
    learnt = {"improved": "▼\u00a0learnt"} if row["role"] == "target" else {}
    return Cell((_VERDICTS | learnt)[row["beyond_noise"]], row["beyond_noise"])
