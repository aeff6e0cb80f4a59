"""Languages × models: what each model gives on each language, for CSV, Markdown and the page."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

from freezetrain.evaluation import Figures
from freezetrain.evaluation.figures import finite_or_none, safe_exp
from freezetrain.evaluation.hits import Flips
from freezetrain.evaluation.losses import Interval, LanguageForgetting
from freezetrain.formats import (
    ends,
    fixed,
    language_and_code,
    perplexity,
    ratio,
    share,
    signed,
    signed_percent,
)
from freezetrain.report.run import Run
from freezetrain.tables import Column, Table, to_csv, to_markdown

MEAN = "mean"


@dataclass(frozen=True)
class LanguageRow:
    """One language of one model, or the mean of its held-out languages: a line of forgetting.csv.

    NLL in nats; what is not known is None, as is a perplexity past the float range.
    """

    model: str
    step: int
    language: str
    role: Literal["target", "held-out", "mean"]
    documents: int | None
    bytes: int | None
    base_tokens: int | None
    base_perplexity: float | None
    base_nll_per_byte: float | None
    base_bits_per_byte: float | None
    base_accuracy: float | None
    tokens: int | None
    perplexity: float | None
    nll_per_byte: float | None
    bits_per_byte: float | None
    accuracy: float | None
    delta_nll_per_byte: float
    """After minus base: above 0 is forgotten."""
    standard_error: float | None
    interval_low: float | None
    """Of 95%, as interval_high."""
    interval_high: float | None
    relative: float | None
    """The difference as a share of the base's NLL per byte."""
    perplexity_ratio: float | None
    beyond_noise: str | None
    """"forgotten", "improved" or "no"; None without an interval."""
    lost: int | None
    """Tokens that the base ranks first and the model does not, of ``tokens``."""
    won: int | None
    """Tokens that the model ranks first and the base does not."""

    @property
    def interval(self) -> Interval | None:
        if self.interval_low is None or self.interval_high is None:
            return None
        return self.interval_low, self.interval_high


def language_rows(runs: Sequence[Run]) -> list[LanguageRow]:
    """A row for each language of each run's model, and one for the mean of its held-out ones."""
    rows = []
    for run in runs:
        rows += [_language_row(run, language) for language in run.model.figures]
        change = run.model.forgetting
        mean = LanguageForgetting(
            change.mean, change.relative_mean, None, interval=change.mean_interval
        )
        figures = {**_figures(None), **_figures(None, "base_"), "documents": None, "bytes": None}
        values = {**figures, **_change(mean), **_flips(None)}
        rows.append(LanguageRow(run.name, run.model.step, MEAN, "mean", **values))
    return rows


def beyond_noise(interval: Interval | None) -> str | None:
    """``forgotten`` or ``improved`` where an interval of Δ leaves 0 out, else ``no``."""
    if interval is None:
        return None
    low, high = interval
    return "forgotten" if low > 0 else "improved" if high < 0 else "no"


def _language_row(run: Run, language: str) -> LanguageRow:
    before, after = run.history.base.figures[language], run.model.figures[language]
    change = run.model.forgetting.languages.get(language) or _target_change(run, before, after)
    if before.bytes != after.bytes:  # of the documents that were evaluated here alone
        nll = (after.nll_per_byte - change.delta_nll_per_byte) * after.bytes
        before = Figures(nll, after.tokens, after.bytes)
    return LanguageRow(
        run.name,
        run.model.step,
        language,
        "target" if language == run.history.target else "held-out",
        after.documents,
        after.bytes,
        **_figures(before, "base_"),
        **_figures(after),
        **_change(change),
        **_flips(run.model.forgetting.flips.get(language)),
    )


def _target_change(run: Run, before: Figures, after: Figures) -> LanguageForgetting:
    """The target's Δ is its gain with the sign turned; a ratio where the tokens are the same."""
    change = run.model.forgetting
    assert change.target_gain is not None
    delta, gain = 0.0 - change.target_gain, change.target_gain_interval
    # Other bytes are a subsample of a run's own documents, and so of the same tokens.
    same_tokens = before.bytes != after.bytes or change.same_target_tokens(before, after)
    return LanguageForgetting(
        delta,
        delta / (after.nll_per_byte - delta),
        safe_exp(delta * after.bytes / after.tokens) if same_tokens else None,
        interval=None if gain is None else (0.0 - gain[1], 0.0 - gain[0]),
    )


def _figures(figures: Figures | None, prefix: str = "") -> dict[str, Any]:
    names = ("tokens", "perplexity", "nll_per_byte", "bits_per_byte", "accuracy")
    if figures is None:
        return {f"{prefix}{name}": None for name in names}
    values = {name: getattr(figures, name) for name in names}
    values["perplexity"] = finite_or_none(figures.perplexity)
    return {f"{prefix}{name}": value for name, value in values.items()}


def _change(change: LanguageForgetting) -> dict[str, Any]:
    low, high = change.interval or (None, None)
    return {
        "delta_nll_per_byte": change.delta_nll_per_byte,
        "standard_error": change.standard_error,
        "interval_low": low,
        "interval_high": high,
        "relative": change.relative,
        "perplexity_ratio": finite_or_none(change.perplexity_ratio),
        "beyond_noise": beyond_noise(change.interval),
    }


def _flips(flips: Flips | None) -> dict[str, Any]:
    return {
        "lost": None if flips is None else flips.lost,
        "won": None if flips is None else flips.won,
    }


def forgetting_csv(rows: Sequence[LanguageRow], failed: Mapping[str, str] | None = None) -> str:
    """All figures of ``rows`` in full, and a line for each model that ``failed``, with the reason.

    That line has no figure, so that no program takes one for it.
    """
    names = [field.name for field in fields(LanguageRow)]
    without = [{"model": model, "failed": why} for model, why in (failed or {}).items()]
    lines = [{name: getattr(row, name) for name in names} for row in rows]
    columns = [Column(name, partial(_held, name)) for name in (*names, "failed")]
    return to_csv(columns, [*lines, *without])


def _held(name: str, line: Mapping[str, Any]) -> Any:
    return line.get(name)


def failed_table(failed: Mapping[str, str]) -> Table:
    """Models without figures, and why."""
    columns = [Column("model", 0, text=True), Column("why", 1, text=True)]
    return Table("Models that could not be measured", columns, list(failed.items()))


def forgetting_markdown(rows: Sequence[LanguageRow]) -> str:
    """A table of ``rows`` for an issue or a paper, with a line on what its columns are."""
    columns = [
        Column("language", _label, text=True),
        Column("nats/byte before", "base_nll_per_byte", fixed, missing=""),
        Column("after", "nll_per_byte", fixed, missing=""),
        Column("Δ nats/byte", "delta_nll_per_byte", signed),
        Column("95% interval", "interval", ends, missing=""),
        Column("relative", "relative", signed_percent),
        Column("perplexity ×", "perplexity_ratio", ratio),
        Column("beyond noise", "beyond_noise", text=True, missing=""),
    ]
    if _flipped(rows):
        columns[-1:-1] = [
            Column(f"tokens {what}", partial(_share_flipped, what), share, missing="")
            for what in ("lost", "won")
        ]
    if len({row.model for row in rows}) > 1:
        columns.insert(0, Column("model", "model", text=True))
    note = (
        "Δ: loss (NLL) after minus before on the same held-out text; above 0 is forgotten. "
        "Relative: Δ as a share of the loss before."
    )
    if _flipped(rows):
        note += f" {FLIPPED}"
    return to_markdown(Table("", columns, rows, note=note))


FLIPPED = (
    "Tokens lost: ranked first by the base and not by the model, as a share of all; won: by the "
    "model alone. Not counted where the two have other tokens."
)


def _flipped(rows: Sequence[LanguageRow]) -> bool:
    """Whether it is known of any row which tokens the base alone ranks first."""
    return any(row.lost is not None for row in rows)


def _share_flipped(what: str, row: LanguageRow) -> float | None:
    """Share of the tokens that were ``lost`` or ``won``."""
    flipped: int | None = getattr(row, what)
    return None if flipped is None or row.tokens is None else flipped / row.tokens


def _label(row: LanguageRow) -> str:
    if row.role == "mean":
        return "mean of held-out"
    return f"{row.language} (target)" if row.role == "target" else row.language


def summary_table(rows: Sequence[LanguageRow]) -> Table:
    """A line a model, for the terminal."""
    gains = {row.model: -row.delta_nll_per_byte for row in rows if row.role == "target"}
    columns = [
        Column("run", "model", text=True),
        Column("step", "step"),
        Column("target's gain", lambda row: gains.get(row.model), signed),
        Column("mean loss", "delta_nll_per_byte", signed),
        Column("relative", "relative", signed_percent),
    ]
    means = [row for row in rows if row.role == "mean"]
    return Table("against the base, nats per byte", columns, means)


_VERDICTS = {
    "forgotten": "▲\u00a0forgotten",
    "improved": "▼\u00a0improved",
    "learnt": "▼\u00a0learnt",
    "no": "within\u00a0noise",
}

ByModel = Mapping[str, LanguageRow]
"""One language, or the mean: model → its row."""


def languages_table(rows: Sequence[LanguageRow]) -> Table:
    """Languages × models, of ``language_rows``; the target on top, then the most forgotten.

    What the base gave stands once where it is the same for all models, else beside each of them.
    """
    by_language: dict[str, dict[str, LanguageRow]] = {}
    for row in rows:
        by_language.setdefault("" if row.role == "mean" else row.language, {})[row.model] = row
    means = by_language.pop("")
    shared = all(
        len({(row.base_tokens, row.base_nll_per_byte) for row in by_model.values()}) == 1
        for by_model in by_language.values()
    )
    columns = [
        Column(
            "language",
            lambda by_model: language_and_code(_any(by_model).language),
            text=True,
            note=lambda by_model: "target" if _any(by_model).role == "target" else "",
        )
    ]
    for model in means:
        columns += _model_columns(model, means)
        if _flipped([row for row in rows if row.model == model]):
            columns += _flipped_columns(model)
        if not shared:
            columns += _base_columns(model)
    if shared:
        columns += _base_columns(None)
    ranked = sorted(
        by_language.values(),
        key=lambda by_model: (_any(by_model).role != "target", -_any(by_model).delta_nll_per_byte),
    )
    title = "Every language against the base; Δ above 0 is forgotten, its 95% interval below it"
    note = FLIPPED if _flipped(rows) else ""
    return Table(title, columns, ranked, foot="mean of held-out", note=note, sortable=True)


def _any(by_model: ByModel) -> LanguageRow:
    return next(iter(by_model.values()))


def _shown(row: LanguageRow | None, name: str) -> Any:
    value = None if row is None else getattr(row, name)
    # A row holds no perplexity past the float range.
    return math.inf if row is not None and value is None and name.endswith("perplexity") else value


def _model_columns(model: str, means: ByModel) -> list[Column]:
    """What one model gives, with its mean at the foot."""

    def of_model(name: str) -> Callable[[ByModel], Any]:
        return lambda by_model: _shown(by_model.get(model), name)

    def interval(by_model: ByModel) -> str:
        return ends(by_model[model].interval) if model in by_model else ""

    def verdict(by_model: ByModel) -> str | None:
        row = by_model.get(model)
        if row is not None and (row.role, row.beyond_noise) == ("target", "improved"):
            return "learnt"
        return None if row is None else row.beyond_noise

    delta = of_model("delta_nll_per_byte")
    return [
        Column("Δ nats/byte", delta, signed, note=interval, group=model, foot=means),
        Column("beyond noise", verdict, _VERDICTS.__getitem__, text=True, group=model, foot=means),
        Column("relative", of_model("relative"), signed_percent, group=model, foot=means),
        Column(
            "ratio",
            lambda by_model: by_model[model].perplexity_ratio if model in by_model else None,
            ratio,
            group=model,
        ),
        Column("perplexity", of_model("perplexity"), perplexity, group=model),
        Column("accuracy", of_model("accuracy"), share, group=model),
    ]


def _flipped_columns(model: str) -> list[Column]:
    def of_model(what: str) -> Callable[[ByModel], float | None]:
        return lambda by_model: _share_flipped(what, by_model[model]) if model in by_model else None

    names = ("lost", "won")
    return [Column(f"tokens {what}", of_model(what), share, group=model) for what in names]


def _base_columns(model: str | None) -> list[Column]:
    """What the base gives: beside one model, or (None) once for all."""

    def of_base(name: str) -> Callable[[ByModel], Any]:
        return lambda by_model: _shown(
            _any(by_model) if model is None else by_model.get(model), f"base_{name}"
        )

    group, start = ("base", "") if model is None else (model, "base: ")
    return [
        Column(f"{start}perplexity", of_base("perplexity"), perplexity, group=group),
        Column(f"{start}nats/byte", of_base("nll_per_byte"), fixed, group=group),
        Column(f"{start}accuracy", of_base("accuracy"), share, group=group),
    ]
