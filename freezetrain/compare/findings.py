"""What a comparison found and recommends, one line each: verdict, variants, figures, intervals."""

from collections.abc import Callable, Sequence

from freezetrain.compare.results import (
    CHOICES,
    AtGain,
    Choice,
    CompareResults,
    Interval,
    LossAtGain,
    Verdict,
)
from freezetrain.formats import fixed, signed

_NAMED = 8  # variants that a line names

_MAY_USE = {
    "no_old_texts": "without any text of the languages to keep",
    "no_replay": "with such text to choose weights by, none to train on",
    "any": "with such text to train on",
}


def findings(results: CompareResults) -> list[str]:
    """Variants that lose less on average than the reference, beyond noise or not, or more."""
    comparison = results.comparison
    reference, at = comparison.reference, comparison.main
    failed = [f"{run.variant}, {rate_text(run.learning_rate)}" for run in comparison.failed]
    left_out = [f"Failed runs, left out: {len(failed)} ({_some(failed)})."] if failed else []
    if at is None:
        return [f"Nothing can be compared at equal gain: {comparison.why_none}.", *left_out]
    counts = at.comparisons["mean"]
    chance = fixed(counts.better_by_chance, 1)
    tested = f"{counts.better} of {counts.tested} variants, {chance} expected by chance"
    heads: dict[Verdict, str] = {
        "better": f"Less loss than {reference} ({tested})",
        "no difference": f"No difference to {reference}",
        "worse": f"More loss than {reference}",
        "one seed": "One seed, noise not known",
    }
    lines = [] if counts.better or not counts.tested else [f"Less loss than {reference}: {tested}."]
    for verdict, head in heads.items():
        names = [name for name in at.ranked() if at.variants[name]["mean"].verdict == verdict]
        lines += _changes(head, at, names, "mean")
    uneven = [
        name
        for name in at.ranked()
        if at.variants[name]["mean"].verdict == "better"
        and at.variants[name]["worst"].verdict == "worse"
    ]
    lines += _changes("Less loss on average, more of the worst language", at, uneven, "worst")
    return [*lines, *_unreached(at), *left_out]


def _changes(head: str, at: AtGain, names: Sequence[str], measure: str) -> list[str]:
    changes = [f"{name} {change(at.variants[name][measure])}" for name in names]
    return [f"{head}: {_some(changes)}."] if names else []


def _unreached(at: AtGain) -> list[str]:
    """Variants that a seed has no value of at the gain, by what would help."""
    by_reason: dict[str, list[str]] = {}
    for name in at.ranked():
        entry = at.variants[name]["mean"]
        if entry.verdict != "not reached":
            continue
        ends = [seed.gains for seed in entry.unreached]
        if not ends or None in ends:
            reason = "a seed without a result"
        elif all(end is not None and end[1] < at.gain for end in ends):
            reason = "a seed gains less; try higher learning rates"
        else:
            reason = "a seed gains more; try lower learning rates"
        by_reason.setdefault(reason, []).append(name)
    return [f"Not compared ({reason}): {_some(names)}." for reason, names in by_reason.items()]


def recommendations(results: CompareResults) -> list[str]:
    """A line for what a user may have: no text of other languages, some, some to train on."""
    comparison = results.comparison
    at, reference = comparison.main, comparison.reference
    if at is None:
        return []
    if not at.comparisons["mean"].tested:
        return ["Nothing is recommended: no variant was compared with two seeds or more."]
    chosen = comparison.recommendation
    if chosen.get("any") is None:
        rate = at.variants[reference]["mean"].learning_rate
        written = "–" if rate is None else rate_text(rate)
        return [
            f"No variant loses less than {reference} beyond noise: use {reference}, learning rate "
            f"{written}, or a lower one for less forgetting."
        ]
    return [
        f"Best {_MAY_USE[choice]}: {_described(results, chosen[choice])}." for choice in CHOICES
    ]


def _described(results: CompareResults, choice: Choice | None) -> str:
    if choice is None:
        return f"{results.comparison.reference}, as nothing is better beyond noise"
    entry = results.main.variants[choice.variant]["mean"]
    alike = f"; not told apart: {_some(choice.alike)}" if choice.alike else ""
    return (
        f"{choice.variant}, learning rate {rate_text(choice.learning_rate)}; mean loss "
        f"{change(entry)}; worst language: {choice.worst}{alike}"
    )


def _some(names: Sequence[str]) -> str:
    more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return ", ".join([*names[:_NAMED], *more])


def change(entry: LossAtGain) -> str:
    """``−62% (−70 to −54%)``; in nats where the reference loses nothing, ``–`` for nothing."""
    interval = change_interval(entry)
    return f"{change_text(entry)} ({interval})" if interval else change_text(entry)


def change_text(entry: LossAtGain) -> str:
    """``−62%``; in nats per byte where the reference loses nothing, ``–`` where there is none."""
    if entry.relative is not None:
        return f"{signed(100 * entry.relative, 0)}%"
    return "–" if entry.difference is None else signed(entry.difference)


def change_interval(entry: LossAtGain) -> str:
    """``−70 to −54%``; empty where there is none."""
    if entry.relative is None:
        return interval_text(entry.difference_interval, signed)
    ends = interval_text(entry.relative_interval, lambda share: signed(100 * share, 0))
    return f"{ends}%" if ends else ""


def interval_text(interval: Interval | None, write: Callable[[float], str]) -> str:
    """``0.0121 to 0.0140``; empty where there is none."""
    return "" if interval is None else f"{write(interval[0])} to {write(interval[1])}"


def rate_text(rate: float) -> str:
    """``0.00023``, ``1.5e-05``"""
    return f"{rate:.2g}"


def precise(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}".replace("-", "−")
