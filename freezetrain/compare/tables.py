"""The tables of a comparison, for its page, the terminal, CSV and Markdown."""

from collections.abc import Sequence

from freezetrain.compare.curves import language_losses
from freezetrain.compare.findings import (
    change_interval,
    change_text,
    interval_text,
    precise,
    rate_text,
)
from freezetrain.compare.results import (
    MEASURES,
    AtGain,
    CompareResults,
    LossAtGain,
    RunResult,
    VariantFacts,
)
from freezetrain.formats import count, fixed, language_and_code, percent, seconds, signed
from freezetrain.report.page import flat
from freezetrain.tables import Column, Table

VERDICTS = {
    "better": "▼\u00a0better",
    "worse": "▲\u00a0worse",
    "no difference": "no\u00a0difference",
    "one seed": "one\u00a0seed",
    "not reached": "not\u00a0reached",
    "reference": "–",
}

_STYLES = {"better": "green", "worse": "red"}

_MARKS = {"no difference": "≈", "one seed": "?"}


def equal_gain_table(results: CompareResults) -> Table:
    """A row a variant at the main gain, the least mean loss first."""
    at, reference = results.main, results.comparison.reference
    columns = [_variant_column()]
    for measure in MEASURES:
        columns += _loss_columns(at, measure, reference, f"{measure} loss")
    columns += [
        _rate_column(at),
        Column("frozen", lambda name: results.variants[name].frozen, _share),
        Column("old text", lambda name: _old_text(results.variants[name]), text=True),
        _time_column(results),
    ]
    title = (
        f"Loss of the held-out languages where each variant gains {precise(at.gain)} nats per byte"
    )
    if any(entry.interval for losses in at.variants.values() for entry in losses.values()):
        title += "; 95% intervals over seeds below"
    return Table(title, columns, at.ranked(), sortable=True)


def _variant_column() -> Column:
    return Column("variant", str, text=True, sort=str)


def _loss_columns(at: AtGain, measure: str, reference: str, group: str) -> list[Column]:
    """Loss, change against the reference and verdict, of rows that are names of variants."""

    def entry(name: str) -> LossAtGain:
        return at.variants[name][measure]

    return [
        Column(
            "nats/byte",
            lambda name: entry(name).loss,
            fixed,
            note=lambda name: interval_text(entry(name).interval, fixed),
            group=group,
        ),
        Column(
            f"vs {reference}",
            lambda name: change_text(entry(name)),
            note=lambda name: change_interval(entry(name)),
            sort=lambda name: _against(entry(name)),
            group=group,
        ),
        Column(
            "beyond noise",
            lambda name: VERDICTS[entry(name).verdict],
            text=True,
            sort=lambda name: entry(name).verdict,
            group=group,
        ),
    ]


def _brief_columns(at: AtGain, measure: str, reference: str) -> list[Column]:
    """Loss and change against the reference, with a mark for the verdict."""

    def entry(name: str) -> LossAtGain:
        return at.variants[name][measure]

    return [
        Column(measure, lambda name: entry(name).loss, fixed),
        Column(
            f"vs {reference}",
            lambda name: _marked_change(entry(name)),
            style=lambda name: _STYLES.get(entry(name).verdict),
        ),
    ]


def _against(entry: LossAtGain) -> float | None:
    return entry.difference if entry.relative is None else entry.relative


def _marked_change(entry: LossAtGain) -> str:
    if entry.verdict == "not reached":
        return entry.verdict
    return f"{_MARKS.get(entry.verdict, '')} {change_text(entry)}".strip()


def _rate_column(at: AtGain) -> Column:
    return Column("learning rate", lambda name: at.variants[name]["mean"].learning_rate, rate_text)


def _time_column(results: CompareResults) -> Column:
    return Column(
        "time",
        lambda name: results.comparison.variants[name].relative_seconds,
        lambda ratio: f"×{fixed(ratio, 2)}",
    )


def _share(share: float) -> str:
    return f"{100 * share:.1f}%" if share >= 0.01 else percent(share)


def _old_text(facts: VariantFacts) -> str:
    """What a variant needs of the held-out languages’ texts."""
    parts = ["scores"] if facts.reads_old else []
    if facts.trained_on_old:
        parts.append(f"{percent(facts.trained_on_old)} replay")
    return " + ".join(parts) or "none"


def terminal_table(results: CompareResults) -> Table:
    """A row a variant at the main gain, in 80 columns."""
    at, reference = results.main, results.comparison.reference
    columns = [_variant_column()]
    for measure in MEASURES:
        columns += _brief_columns(at, measure, reference)
    columns.append(_rate_column(at))
    title = f"loss of held-out languages at a target gain of {precise(at.gain)}, nats per byte"
    used = {entry.verdict for losses in at.variants.values() for entry in losses.values()}
    note = "; ".join(f"{mark}: {verdict}" for verdict, mark in _MARKS.items() if verdict in used)
    return Table(title, columns, at.ranked(), note=note)


def gains_table(results: CompareResults) -> Table:
    """Variants × gains: mean loss, and what it is against the reference's."""
    comparison = results.comparison
    columns = [_variant_column()]
    for at in comparison.at:
        main = ", the main one" if at.gain == comparison.gain else ""
        group = f"gain {precise(at.gain)}{main}"
        columns += _loss_columns(at, "mean", comparison.reference, group)
    title = "Mean loss at every gain that was looked at, in nats per byte"
    return Table(title, columns, results.main.ranked(), sortable=True)


def languages_table(results: CompareResults, names: Sequence[str]) -> Table:
    """What each held-out language loses at the main gain with each of ``names``."""
    losses = language_losses(results.runs, results.main.gain)
    title = f"Loss of each language at a gain of {precise(results.main.gain)}, in nats per byte"
    columns = [Column("language", language_and_code, text=True, sort=language_and_code)]
    columns += [_language_column(name, losses.get(name, {})) for name in names]
    return Table(title, columns, results.held_out, sortable=True)


def _language_column(variant: str, losses: dict[str, float | None]) -> Column:
    return Column(variant, losses.get, signed)


def runs_table(results: CompareResults) -> Table:
    """A row a run, in the recipe's order."""
    columns = [
        Column("variant", "variant", text=True, sort=lambda run: run.variant),
        Column("learning rate", "learning_rate", rate_text),
        Column("seed", "seed", count),
        Column("gain", "gain", signed),
        Column("mean loss", "mean", signed),
        Column("worst loss", "worst", signed),
        Column("worst language", "worst_language", language_and_code, text=True),
        Column("time", "seconds", seconds),
        Column("tokens", "tokens", count),
    ]
    title = "Every run’s model against the base, in nats per byte"
    return Table(title, columns, results.runs, sortable=True)


def failed_table(results: CompareResults) -> Table | None:
    """The runs that gave no result; None where all did."""
    columns = [
        Column("variant", "variant", text=True),
        Column("learning rate", "learning_rate", rate_text),
        Column("seed", "seed", count),
        Column("why", "failed", text=True),
    ]
    failed = results.comparison.failed
    return Table("Runs that failed", columns, failed) if failed else None


def variants_table(results: CompareResults) -> Table:
    """What each variant changes."""

    def changes(name: str) -> str | None:
        flattened = flat(results.variants[name].changes)
        return ", ".join(f"{key}: {value}" for key, value in flattened.items()) or None

    columns = [
        Column("variant", str, text=True),
        Column("region frozen", lambda name: results.variants[name].region, text=True),
        Column("other changes", changes, text=True),
    ]
    return Table("What each variant changes", columns, list(results.variants))


def csv_columns(results: CompareResults) -> list[Column]:
    """Of runs.csv, a row a run: numbers in full, losses and gains in nats per byte."""
    keys = ("variant", "learning_rate", "seed", "gain", *MEASURES, "worst_language", "seconds")
    columns = [Column(key, key) for key in (*keys, "tokens", "failed")]
    return [*columns, *(_delta_column(code) for code in results.held_out)]


def _delta_column(code: str) -> Column:
    def loss(run: RunResult) -> float | None:
        return (run.languages or {}).get(code)

    return Column(f"delta_{code}", loss)
