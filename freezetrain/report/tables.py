"""All figures of the report as tables of written cells."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import fmean
from typing import Any

from freezetrain.report.languages import language_and_code
from freezetrain.report.numbers import count, fixed, percent, perplexity, ratio, seconds, signed
from freezetrain.report.plots.ablation import NOTHING, rises

FULLEST = 0.05  # share of rows, or columns, that the quickstart counts as the fullest


@dataclass(frozen=True)
class Cell:
    """A cell with a small note below, sorted by ``value``; None is sorted last."""

    text: str
    value: float | str | None = None
    note: str = ""


def share_cell(share: float | None) -> Cell:
    """``41.2%``, below a per cent ``0.043%``; – for None."""
    if share is None:
        return Cell("–")
    return Cell(f"{100 * share:.1f}%" if share >= 0.01 else percent(share), share)


@dataclass(frozen=True)
class Table:
    """Cells ready for the page. Columns whose place is in ``texts`` are text, the others numbers.

    ``groups`` are headings over several columns each: (heading, number of columns). ``foot`` are
    rows that stay below when the reader sorts.
    """

    title: str
    columns: list[str]
    rows: Sequence[Sequence[str | Cell]]
    texts: tuple[int, ...] = (0,)
    groups: list[tuple[str, int]] = field(default_factory=list)
    foot: Sequence[Sequence[str | Cell]] = ()
    sortable: bool = False
    broad: bool = False  # may be wider than the text

    @property
    def starts(self) -> set[int]:
        """Places of the columns with which groups begin, but for the first."""
        return set(list(accumulate(span for _, span in self.groups))[:-1])


def ablation_table(results: Mapping[str, Any]) -> Table:
    ablation, by_region = results["ablation"], rises(results["ablation"])
    columns = ["language", "tokens", "perplexity", "bits/byte"]
    groups = [("", 2), (f"{NOTHING} zeroed", 2)]
    for name in by_region:
        columns += ["perplexity", "rise"]
        groups.append((f"{name} zeroed", 2))
    rows = []
    for code, before in ablation[NOTHING].items():
        row = [language_and_code(code), count(before["tokens"]), *_figures(before)]
        for name, rise in by_region.items():
            row += [perplexity(ablation[name][code]["perplexity"]), signed(rise[code])]
        rows.append(row)
    means = ["mean", "", "", ""]
    for rise in by_region.values():
        means += ["", signed(fmean(rise.values()))]
    return Table(
        "Loss of every language with a region set to zero; rise in bits per byte",
        columns,
        [*rows, means],
        groups=groups,
    )


def forgetting_table(results: Mapping[str, Any]) -> Table:
    """Held-out languages and the target: before, and after each run."""
    runs = results["runs"]
    first = next(iter(runs.values()))["evaluations"][0]
    columns = ["language", "perplexity", "bits/byte"]
    groups = [("", 1), (f"before (step {count(first['step'])})", 2)]
    rows = {
        code: [language_and_code(code), *_figures(now)] for code, now in first["figures"].items()
    }
    means = ["mean of held-out", "", ""]
    for name, run in runs.items():
        last = run["evaluations"][-1]
        columns += ["perplexity", "ratio", "Δ nats/byte"]
        groups.append((f"{name} (step {count(last['step'])})", 3))
        for code, row in rows.items():
            change = last["forgetting"]["languages"].get(code)
            now = perplexity(last["figures"][code]["perplexity"])
            if change is not None:
                row += [now, ratio(change["perplexity_ratio"])]
                row.append(signed(change["delta_nll_per_byte"]))
            else:
                gain = last["forgetting"]["target_gain"]
                before = first["figures"][code]["perplexity"]
                row += [now, ratio(_quotient(last["figures"][code]["perplexity"], before))]
                row.append("–" if gain is None else signed(-gain))
        means += ["", "", signed(last["forgetting"]["mean"])]
    target = results["target"]
    if target in rows:
        rows[target][0] += " (target)"
    return Table(
        "Loss of every language before and after training; Δ above 0 is forgotten, below 0 learnt",
        columns,
        [*rows.values(), means],
        groups=groups,
    )


def course_table(results: Mapping[str, Any]) -> Table:
    rows = []
    for name, run in results["runs"].items():
        for evaluation in run["evaluations"]:
            change, gain = evaluation["forgetting"], evaluation["forgetting"]["target_gain"]
            row = [name, count(evaluation["step"]), signed(change["mean"])]
            row += [signed(change["backward_transfer"]), "–" if gain is None else signed(gain)]
            worst = change["worst"]
            row += [language_and_code(worst["language"]), signed(worst["delta_nll_per_byte"])]
            rows.append(row)
    columns = ["run", "step", "mean Δ", "backward transfer", "target’s gain"]
    columns += ["worst language", "its Δ"]
    return Table("The course of the runs, in nats per byte", columns, rows, texts=(0, 5))


def runs_table(results: Mapping[str, Any]) -> Table:
    rows = []
    for name, run in results["runs"].items():
        verify = run.get("verify") or {}
        counts = [verify.get(key) for key in ("checked", "moved", "changed_elsewhere")]
        loss = run.get("final_loss")
        rows.append(
            [
                name,
                *("–" if value is None else count(value) for value in counts),
                "–" if loss is None else fixed(loss),
            ]
        )
    columns = [
        "run",
        "region’s weights",
        "of these changed",
        "other weights changed",
        "last training loss",
    ]
    return Table("Each run’s model against the base, bit for bit", columns, rows)


def location_table(region: Mapping[str, Any], direction: str) -> Table:
    """Matrices × layers; ``region["top"]`` is the share of rows or columns that is the fullest."""
    rows = []
    for matrix in region["matrices"]:
        by_layer = [region[direction].get(str(layer), {}) for layer in region["layers"]]
        rows.append([matrix, *(percent(layer.get(matrix)) for layer in by_layer)])
    return Table(
        f"Share of each matrix’s region entries in its fullest {percent(region['top'])} of "
        f"{direction}, by layer; of a random region as large: "
        f"{percent(region['even'][direction])}",
        ["matrix", *(str(layer) for layer in region["layers"])],
        rows,
    )


def settings_table(results: Mapping[str, Any]) -> Table:
    """The model's and the region's size, then the settings as they were given."""
    model, region = results["model"], results["region"]
    rows = [
        ["model", model["name"]],
        ["weights", count(model["parameters"])],
        ["layers", count(model["layers"])],
        [
            "region",
            f"{count(region['entries'])} entries, {percent(region['share'])} of all weights",
        ],
        ["target", results["target"]],
        ["languages", ", ".join(results["languages"])],
        ["languages scored", ", ".join(results["score_languages"])],
    ]
    rows += [[_spaced(name), _plain(value)] for name, value in results["settings"].items()]
    return Table("Settings", ["setting", "value"], rows, texts=(0, 1))


def times_table(results: Mapping[str, Any]) -> Table:
    rows = [[_spaced(name), seconds(value)] for name, value in results["seconds"].items()]
    return Table("Time", ["stage", "time"], rows)


def _figures(figures: Mapping[str, Any]) -> list[str]:
    return [perplexity(figures["perplexity"]), fixed(figures["bits_per_byte"])]


def _quotient(after: float | None, before: float | None) -> float | None:
    return None if after is None or not before else after / before


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
