"""Forgetting: what further pre-training on a target language cost the held-out languages."""

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

from freezetrain.errors import UserError, near_misses
from freezetrain.evaluation.figures import (
    DocumentSums,
    Figures,
    as_figures,
    finite_or_none,
    safe_exp,
)
from freezetrain.evaluation.hits import Flips, Hits
from freezetrain.evaluation.ratio import Resampled, bootstrap_ratios, interval, standard_error
from freezetrain.formats import fixed, perplexity, ratio, share, signed
from freezetrain.tables import Column, Table

Interval = tuple[float, float]  # of 95%

Result = Figures | DocumentSums
"""What a model gives on one language."""


@dataclass(frozen=True)
class LanguageForgetting:
    """One language, adapted against base.

    Where both were evaluated document by document, ``standard_error`` and ``interval`` say how
    much of the difference is chance: it is taken document by document, so that what makes one text
    harder than another for both models does not count.
    """

    delta_nll_per_byte: float  # nats per UTF-8 byte, adapted − base: positive = forgotten
    relative: float  # delta_nll_per_byte as a share of the base's NLL per byte
    perplexity_ratio: float | None  # adapted / base; None if the two used different tokens
    standard_error: float | None = None  # of delta_nll_per_byte, over documents
    interval: Interval | None = None  # 95% bootstrap interval of delta_nll_per_byte


@dataclass(frozen=True)
class Forgetting:
    """Forgetting of the held-out languages, and the gain of the target language.

    All but ratios and relative figures are in nats per UTF-8 byte.
    """

    languages: dict[str, LanguageForgetting]  # held-out languages, in the order they were given
    mean: float  # mean of delta_nll_per_byte over the held-out languages, each counted once
    mean_interval: Interval | None
    relative_mean: float  # mean of `relative` over the held-out languages
    relative_mean_interval: Interval | None
    worst: tuple[str, float]  # the held-out language forgotten most, its delta_nll_per_byte
    backward_transfer: float  # mean over held-out languages of base − adapted: negative = forgotten
    target: str | None
    target_gain: float | None  # base − adapted of the target language: positive = learnt
    target_gain_interval: Interval | None
    flips: dict[str, Flips] = field(default_factory=dict)
    """Of each language, the target too, where it is known which tokens both rank first, and both
    have the same ones."""

    def same_target_tokens(self, before: Figures, after: Figures) -> bool:
        """Whether base and adapted model have the same tokens of the target.

        ``before`` and ``after``: its figures, of the same documents. Where it is not known of any
        language which tokens are ranked first, two tokenizers are told by how many tokens they
        make.
        """
        if self.flips:
            return self.target in self.flips
        known = any(change.perplexity_ratio is not None for change in self.languages.values())
        return known and before.tokens == after.tokens

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        data = asdict(self)
        data["worst"] = {"language": self.worst[0], "delta_nll_per_byte": self.worst[1]}
        for language in data["languages"].values():
            language["perplexity_ratio"] = finite_or_none(language["perplexity_ratio"])
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Forgetting":
        """The inverse of ``to_dict``, but for a perplexity ratio past the float range: None."""
        languages = {
            name: LanguageForgetting(**{**values, "interval": _pair(values["interval"])})
            for name, values in data["languages"].items()
        }
        worst = (data["worst"]["language"], data["worst"]["delta_nll_per_byte"])
        flips = {name: Flips(**counts) for name, counts in data.get("flips", {}).items()}
        intervals = ("mean_interval", "relative_mean_interval", "target_gain_interval")
        pairs = {name: _pair(data.get(name)) for name in intervals}
        return cls(**{**data, **pairs, "languages": languages, "worst": worst, "flips": flips})


def forgetting(
    before: Mapping[str, Result], after: Mapping[str, Result], target: str | None = None
) -> Forgetting:
    """Compare what the adapted model gave, ``after``, with what the base gave, ``before``.

    All languages but ``target`` are held out. The backward transfer is that of Lopez-Paz and
    Ranzato (2017, arXiv 1706.08840), with NLL per byte in the place of an accuracy. Intervals need
    ``DocumentSums`` of two documents or more on both sides: they are percentiles of 1,000
    resamples of the documents of each language (the same documents for both models), widened where
    these are few.

    Raises ``UserError`` if the two hold other languages or other texts, if ``target`` is not one
    of the languages, or if no language is held out.
    """
    _check(before, after, target)
    compared = {name: _compare(before[name], after[name], name) for name in before}
    languages = {name: change for name, (change, _) in compared.items() if name != target}
    drawn = {name: resampled for name, (_, resampled) in compared.items() if name != target}
    deltas = {name: change.delta_nll_per_byte for name, change in languages.items()}
    mean = fmean(deltas.values())
    worst = max(deltas, key=deltas.__getitem__)
    gain = gain_interval = None
    if target is not None:
        change = compared[target][0]
        gain = 0.0 - change.delta_nll_per_byte  # never −0.0
        if change.interval is not None:
            gain_interval = (0.0 - change.interval[1], 0.0 - change.interval[0])
    known = {name: resampled for name, resampled in drawn.items() if resampled is not None}
    all_known = len(known) == len(drawn)
    shares = [_share(resampled, as_figures(before[name])) for name, resampled in known.items()]
    return Forgetting(
        languages=languages,
        mean=mean,
        mean_interval=interval(list(known.values())) if all_known else None,
        relative_mean=fmean(change.relative for change in languages.values()),
        relative_mean_interval=interval(shares) if all_known else None,
        worst=(worst, deltas[worst]),
        backward_transfer=0.0 - mean,
        target=target,
        target_gain=gain,
        target_gain_interval=gain_interval,
        flips=_flips(before, after),
    )


@dataclass(frozen=True)
class _Row:
    """A line of the table of forgetting."""

    label: str
    figures: Figures | None
    delta: float
    interval: Interval | None
    ratio: float | None
    flips: Flips | None = None

    @property
    def by_chance(self) -> bool:
        return self.interval is not None and self.interval[0] <= 0 <= self.interval[1]


def forgetting_table(
    before: Mapping[str, Figures],
    after: Mapping[str, Figures],
    target: str | None = None,
    *,
    result: Forgetting | None = None,
    title: str = "",
    rows: int | None = None,
    flips: bool = False,
) -> Table:
    """The target language and the held-out ones, most forgotten first, with their mean below.

    ``rows`` limits the held-out languages that are shown, None shows all. ``result``: what a
    comparison document by document gave; changes whose 95% interval holds 0 are then marked.
    ``flips``: with the shares of the tokens that were lost and won, where ``result`` has them.
    Takes what ``forgetting`` takes and raises what it raises.
    """
    result = result or forgetting(before, after, target)
    held_out = [
        _Row(
            name,
            after[name],
            change.delta_nll_per_byte,
            change.interval,
            change.perplexity_ratio,
            result.flips.get(name),
        )
        for name, change in result.languages.items()
    ]
    held_out.sort(key=lambda row: -row.delta)
    shown = held_out[:rows]
    other_tokens = all(row.ratio is None for row in held_out)
    targets = []
    if target is not None:
        change = forgetting({target: before[target]}, {target: after[target]}).languages[target]
        delta, gain = change.delta_nll_per_byte, result.target_gain_interval
        label = f"{target} (target)"
        same = result.same_target_tokens(before[target], after[target])
        quotient = change.perplexity_ratio if same else None
        targets = [_Row(label, after[target], delta, gain, quotient, result.flips.get(target))]
    mean = _Row("", None, result.mean, result.mean_interval, None)
    notes = []
    if any(row.by_chance for row in [*targets, *held_out, mean]):
        notes.append("≈: cannot be told from chance")
    if len(shown) < len(held_out):
        notes.append(f"{len(held_out) - len(shown)} less forgotten languages are not shown")
    columns = [
        Column("language", "label", text=True),
        Column("perplexity", lambda row: row.figures.perplexity, perplexity),
        Column("nats/byte", lambda row: row.figures.nll_per_byte, fixed),
        Column(
            "Δ nats/byte",
            lambda row: f"{'≈ ' if row.by_chance else ''}{signed(row.delta)}",
            foot=mean,
        ),
        Column("perplexity ×", "ratio", ratio, missing="other tokens"),
    ]
    if flips and result.flips:
        columns += [Column(what, partial(_share_flipped, what), share) for what in ("lost", "won")]
        notes.append("lost: tokens that the base alone ranks first; won: the adapted model alone")
    elif flips and other_tokens:
        notes.append("tokens lost and won are not counted: base and model have other tokens")
    foot = f"mean of {len(held_out)} held out"
    return Table(title, columns, [*targets, *shown], foot=foot, note="; ".join(notes))


def _share_flipped(what: str, row: _Row) -> float | None:
    if row.flips is None or row.figures is None:
        return None
    lost_or_won: int = getattr(row.flips, what)
    return lost_or_won / row.figures.tokens


def _compare(
    before: Result, after: Result, language: str
) -> tuple[LanguageForgetting, Resampled | None]:
    """The language's change, and what it was in resamples of its documents."""
    base, adapted = as_figures(before), as_figures(after)
    quotient = None
    if _same_tokens(before, after):
        quotient = safe_exp((adapted.nll - base.nll) / base.tokens)
    delta = adapted.nll_per_byte - base.nll_per_byte
    relative = delta * _per(base)
    if isinstance(before, Figures) or isinstance(after, Figures) or len(before) < 2:
        return LanguageForgetting(delta, relative, quotient), None
    differences = after.nll - before.nll
    drawn = bootstrap_ratios(differences, before.bytes, seed=zlib.crc32(language.encode()))
    resampled = Resampled(delta, len(before), drawn)
    error = standard_error(differences, before.bytes)
    return LanguageForgetting(delta, relative, quotient, error, interval([resampled])), resampled


def _share(resampled: Resampled, base: Figures) -> Resampled:
    """``resampled`` as a share of the base's NLL per byte."""
    per = _per(base)
    return Resampled(resampled.ratio * per, resampled.documents, resampled.drawn * per)


def _per(base: Figures) -> float:
    """1 / NLL per byte; 0 where a base was certain of every token, and shares mean nothing."""
    return 1 / base.nll_per_byte if base.nll_per_byte > 0 else 0.0


def _check(before: Mapping[str, Result], after: Mapping[str, Result], target: str | None) -> None:
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())
        raise UserError(
            "expected the same languages before and after, but only one of the two has "
            f"{', '.join(odd)}; evaluate both models on the same languages"
        )
    for language in before:
        said = [_text(before[language]), _text(after[language])]
        if said[0] != said[1] or not _same(before[language], after[language], "bytes"):
            raise UserError(
                f"expected the same text before and after, got {said[0]} and {said[1]} of "
                f"{language!r}; evaluate both on the same documents, in the same order"
            )
    if target is not None and target not in before:
        raise UserError(
            f"the target language {target!r} is not among the evaluated languages "
            f"{', '.join(before)}{near_misses(target, before)}; add its documents"
        )
    if not before.keys() - {target}:
        raise UserError(
            "expected at least one held-out language besides the target, got none; "
            "add documents of the languages to watch"
        )


def _text(result: Result) -> str:
    size = result.bytes if isinstance(result, Figures) else int(result.bytes.sum())
    documents = result.documents if isinstance(result, Figures) else len(result)
    return f"{size} bytes" if documents is None else f"{size} bytes in {documents} documents"


def _flips(before: Mapping[str, Result], after: Mapping[str, Result]) -> dict[str, Flips]:
    flips = {}
    for language in before:
        base, adapted = _hits(before[language]), _hits(after[language])
        if base is not None and adapted is not None and (found := base.flips(adapted)) is not None:
            flips[language] = found
    return flips


def _hits(result: Result) -> Hits | None:
    return result.hits if isinstance(result, DocumentSums) else None


def _same_tokens(before: Result, after: Result) -> bool:
    """Whether both have the same tokens, or as many in each document, where no more is known."""
    base, adapted = _hits(before), _hits(after)
    if base is None or adapted is None:
        return _same(before, after, "tokens")
    return base.documents == adapted.documents


def _same(before: Result, after: Result, count: str) -> bool:
    """Whether both have as many ``tokens`` or ``bytes``: in each document, where that is known."""
    if isinstance(before, DocumentSums) and isinstance(after, DocumentSums):
        return bool(np.array_equal(getattr(before, count), getattr(after, count)))
    return bool(getattr(as_figures(before), count) == getattr(as_figures(after), count))


def _pair(values: Any) -> Interval | None:
    if values is None:
        return None
    low, high = values
    return (low, high)
