"""The tables of a comparison, on its page and in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table as RichTable

from freezetrain.compare.curves import MEASURES, language_losses
from freezetrain.compare.frontier import at_main_gain, in_order
from freezetrain.compare.sentences import change, precise, rate_text
from freezetrain.formats import count, fixed, language_and_code, percent, seconds, signed
from freezetrain.report.page import flat
from freezetrain.report.tables import Cell, Table, share_cell

Results = Mapping[str, Any]

Entry = Mapping[str, Any]

Row = list[str | Cell]

VERDICTS = {
    "better": "▼\u00a0better",
    "worse": "▲\u00a0worse",
    "no difference": "no\u00a0difference",
    "one seed": "one\u00a0seed",
    "not reached": "not\u00a0reached",
    "reference": "–",
}


def equal_gain_table(results: Results) -> Table:
    """A row a variant at the main gain, the least mean loss first."""
    comparison, found = results["comparison"], at_main_gain(results["comparison"])
    columns, groups = ["variant"], [("", 1)]
    for heading in ("mean loss", "worst loss"):
        columns += ["nats/byte", f"vs {comparison['reference']}", "beyond noise"]
        groups.append((heading, 3))
    columns += ["learning rate", "frozen", "old text", "time"]
    groups.append(("", 4))
    rows: list[Row] = []
    for name in in_order(found):
        facts, time = results["variants"][name], comparison["variants"][name]["relative_seconds"]
        row: Row = [Cell(name, name)]
        for measure in MEASURES:
            row += _entry(found[name][measure])
        rate = found[name]["mean"]["learning_rate"]
        row.append(Cell("–") if rate is None else Cell(rate_text(rate), rate))
        row += [share_cell(facts["frozen"]), old_text(facts)]
        row.append(Cell("–") if time is None else Cell(f"×{fixed(time, 2)}", time))
        rows.append(row)
    title = (
        f"Loss of the held-out languages where each variant gains {precise(comparison['gain'])} "
        "nats per byte"
    )
    if any(entries[measure]["interval"] for entries in found.values() for measure in MEASURES):
        title += "; 95% intervals over seeds below"
    return Table(
        title,
        columns,
        rows,
        texts=(0, 3, 6, 9),
        groups=groups,
        sortable=True,
        broad=True,
    )


def old_text(facts: Entry) -> str:
    """What a variant needs of the held-out languages’ texts."""
    parts = ["scores"] if facts["reads_old"] else []
    if facts["trained_on_old"]:
        parts.append(f"{percent(facts['trained_on_old'])} replay")
    return " + ".join(parts) or "none"


def _entry(entry: Entry) -> Row:
    return [_loss(entry), _relative(entry), Cell(VERDICTS[entry["verdict"]], entry["verdict"])]


def _loss(entry: Entry) -> Cell:
    if entry["loss"] is None:
        return Cell("–")
    return Cell(fixed(entry["loss"]), entry["loss"], _ends(entry["interval"], fixed))


def _relative(entry: Entry) -> Cell:
    value = entry["difference"] if entry["relative"] is None else entry["relative"]
    if value is None:
        return Cell("–")
    if entry["relative"] is None:
        return Cell(change(entry), value, _ends(entry["difference_interval"], signed))
    return Cell(change(entry), value, _ends(entry["relative_interval"], _whole_percent))


def _whole_percent(share: float) -> str:
    return f"{signed(100 * share, 0)}%"


def _ends(interval: Sequence[float] | None, written: Any) -> str:
    return "" if interval is None else f"{written(interval[0])} to {written(interval[1])}"


def gains_table(results: Results) -> Table:
    """Variants × gains: mean loss, and what it is against the reference's."""
    comparison = results["comparison"]
    columns, groups, texts = ["variant"], [("", 1)], [0]
    for one in comparison["at"]:
        main = ", the main one" if one["gain"] == comparison["gain"] else ""
        texts.append(len(columns) + 2)
        columns += ["mean loss", f"vs {comparison['reference']}", "beyond noise"]
        groups.append((f"gain {precise(one['gain'])}{main}", 3))
    rows: list[Row] = [
        [
            Cell(name, name),
            *(cell for one in comparison["at"] for cell in _entry(one["variants"][name]["mean"])),
        ]
        for name in in_order(at_main_gain(comparison))
    ]
    return Table(
        "Mean loss at every gain that was looked at, in nats per byte",
        columns,
        rows,
        texts=tuple(texts),
        groups=groups,
        sortable=True,
        broad=True,
    )


def languages_table(results: Results, names: Sequence[str]) -> Table:
    """What each held-out language loses at the main gain with each of ``names``."""
    gain = results["comparison"]["gain"]
    found = language_losses(results["runs"], gain)
    held_out = [code for code in results["languages"] if code != results["target"]]
    rows: list[Row] = [
        [
            Cell(language_and_code(code), language_and_code(code)),
            *(_number(found.get(name, {}).get(code)) for name in names),
        ]
        for code in held_out
    ]
    title = f"Loss of each language at a gain of {precise(gain)}, in nats per byte"
    return Table(title, ["language", *names], rows, sortable=True, broad=True)


def runs_table(results: Results) -> Table:
    """A row a run, in the recipe's order."""
    rows: list[Row] = []
    for run in results["runs"]:
        row: Row = [
            Cell(run["variant"], run["variant"]),
            Cell(rate_text(run["learning_rate"]), run["learning_rate"]),
            Cell(count(run["seed"]), run["seed"]),
            _number(run["gain"]),
            _number(run["mean"]),
        ]
        worst = run["worst"]
        row += [_number(worst and worst["delta_nll_per_byte"])]
        row += [language_and_code(worst["language"]) if worst else "–"]
        time, tokens = run["seconds"], run["tokens"]
        row.append(Cell("–") if time is None else Cell(seconds(time), time))
        row.append(Cell("–") if tokens is None else Cell(count(tokens), tokens))
        rows.append(row)
    columns = ["variant", "learning rate", "seed", "gain", "mean loss", "worst loss"]
    columns += ["worst language", "time", "tokens"]
    title = "Every run’s model against the base, in nats per byte"
    return Table(title, columns, rows, texts=(0, 6), sortable=True, broad=True)


def _number(value: float | None) -> Cell:
    return Cell("–") if value is None else Cell(signed(value), value)


def failed_table(results: Results) -> Table | None:
    """The runs that gave no result; None where all did."""
    failed = results["comparison"]["failed"]
    rows: list[Row] = [
        [
            Cell(one["variant"], one["variant"]),
            Cell(rate_text(one["learning_rate"]), one["learning_rate"]),
            Cell(count(one["seed"]), one["seed"]),
            one["failed"],
        ]
        for one in failed
    ]
    columns = ["variant", "learning rate", "seed", "why"]
    return Table("Runs that failed", columns, rows, texts=(0, 3)) if rows else None


def variants_table(results: Results) -> Table:
    """What each variant changes."""
    rows: list[Row] = []
    for name, facts in results["variants"].items():
        changes = ", ".join(f"{key}: {value}" for key, value in flat(facts["changes"]).items())
        rows.append([name, facts["region"] or "–", changes or "–"])
    columns = ["variant", "region frozen", "other changes"]
    return Table("What each variant changes", columns, rows, texts=(0, 1, 2))


_STYLES = {"better": "green", "worse": "red"}

_MARKS = {"no difference": "≈ ", "one seed": "? "}

_CAPTIONS = {
    "no difference": "≈: cannot be told from chance",
    "one seed": "?: one seed, chance is not known",
}


def frontier_table(comparison: Mapping[str, Any], *, rows: int | None = None) -> RichTable:
    """The variants of ``compare_variants`` at its main gain, the least mean loss first.

    Those that do not reach it come last. ``rows`` limits what is shown, None shows all.
    """
    found = at_main_gain(comparison)
    table = RichTable(title_justify="left", caption_justify="left")
    if not found:
        table.title = f"no comparison: {escape(comparison['why_none'])}"
        return table
    reference = comparison["reference"]
    table.title = f"loss of held-out languages at a target gain of {comparison['gain']:.4g}"
    table.add_column("variant")
    for measure in ("mean", "worst"):
        table.add_column(measure, justify="right")
        table.add_column(f"vs {escape(reference)}", justify="right")
    table.add_column("learning rate", justify="right")
    table.add_column("time", justify="right")
    order = in_order(found)
    for name in order[:rows]:
        cells = [escape(name)]
        for measure in ("mean", "worst"):
            entry = found[name][measure]
            cells += [_digits(entry["loss"], "{:.4f}"), _change(entry)]
        time = comparison["variants"][name]["relative_seconds"]
        cells += [_digits(found[name]["mean"]["learning_rate"], "{:.2g}"), _digits(time, "×{:.2f}")]
        table.add_row(*cells)
    verdicts = {entry["verdict"] for entries in found.values() for entry in entries.values()}
    captions = ["nats per byte"]
    captions += [said for verdict, said in _CAPTIONS.items() if verdict in verdicts]
    if len(order) > len(order[:rows]):
        captions.append(f"{len(order) - len(order[:rows])} more are not shown")
    if comparison["failed"]:
        captions.append(f"failed runs: {len(comparison['failed'])}")
    table.caption = "; ".join(captions)
    return table


def _digits(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _change(entry: Mapping[str, Any]) -> str:
    """Against the reference, with what is known of noise."""
    verdict = entry["verdict"]
    if verdict == "not reached":
        return verdict
    if entry["relative"] is not None:
        written = f"{entry['relative']:+.0%}"
    else:
        written = _digits(entry["difference"], "{:+.4f}")
    written = f"{_MARKS.get(verdict, '')}{written}"
    style = _STYLES.get(verdict)
    return f"[{style}]{written}[/]" if style else written
