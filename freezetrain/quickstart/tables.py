"""The tables of the page of the quickstart."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from freezetrain.analysis.figures import NOTHING, rises
from freezetrain.formats import (
    count,
    fixed,
    language_and_code,
    percent,
    perplexity,
    ratio,
    signed,
)
from freezetrain.report.tables import Table, _plain, _spaced


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


def _figures(figures: Mapping[str, Any]) -> list[str]:
    return [perplexity(figures["perplexity"]), fixed(figures["bits_per_byte"])]


def _quotient(after: float | None, before: float | None) -> float | None:
    return None if after is None or not before else after / before
