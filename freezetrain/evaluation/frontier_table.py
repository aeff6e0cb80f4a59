"""Variants at the main gain as a compact table in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from freezetrain.evaluation.frontier_choice import at_main_gain, in_order

_STYLES = {"better": "green", "worse": "red"}
_MARKS = {"no difference": "≈ ", "one seed": "? "}
_CAPTIONS = {
    "no difference": "≈: cannot be told from chance",
    "one seed": "?: one seed, chance is not known",
}


def frontier_table(comparison: Mapping[str, Any], *, rows: int | None = None) -> Table:
    """The variants of ``compare_variants`` at its main gain, the least mean loss first.

    Those that do not reach it come last. ``rows`` limits what is shown, None shows all.
    """
    found = at_main_gain(comparison)
    table = Table(title_justify="left", caption_justify="left")
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
            cells += [_number(entry["loss"], "{:.4f}"), _change(entry)]
        time = comparison["variants"][name]["relative_seconds"]
        cells += [_number(found[name]["mean"]["learning_rate"], "{:.2g}"), _number(time, "×{:.2f}")]
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


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _change(entry: Mapping[str, Any]) -> str:
    """Against the reference, with what is known of noise."""
    verdict = entry["verdict"]
    if verdict == "not reached":
        return verdict
    if entry["relative"] is not None:
        written = f"{entry['relative']:+.0%}"
    else:
        written = _number(entry["difference"], "{:+.4f}")
    written = f"{_MARKS.get(verdict, '')}{written}"
    style = _STYLES.get(verdict)
    return f"[{style}]{written}[/]" if style else written
