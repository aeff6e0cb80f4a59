"""What a comparison of variants shows, in sentences made from its figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from freezetrain.compare.frontier import CHOICES, at_main_gain, in_order, recommend
from freezetrain.formats import (
    amount,
    count,
    counted,
    fixed,
    language_name,
    listed,
    quoted,
    seconds,
    signed,
)

Results = Mapping[str, Any]

Entry = Mapping[str, Any]

_NAMED = 8  # variants that a sentence lists

_MAY = {
    "no_old_texts": "Without any text of the languages to keep",
    "no_replay": "With such text to choose weights by, none to train on",
    "any": "With such text to train on as well",
}


def introduction(results: Results) -> str:
    """What was compared, on what."""
    model, comparison = results["model"], results["comparison"]
    target, runs = language_name(results["target"]), results["runs"]
    held_out = [code for code in results["languages"] if code != results["target"]]
    rates = sorted({run["learning_rate"] for run in runs})
    seeds = {run["seed"] for run in runs}
    said = (
        f"{model['name']}, a model of {amount(model['parameters'])} weights, was trained further "
        f"on {target} in {counted(len(results['variants']), 'variant')}, at "
        f"{_listed_rates(rates)} and with {counted(len(seeds), 'seed')}: {count(len(runs))} runs, "
        "of one seed on the same data in the same order. What the loss of "
        f"{target} falls by is gained; what {_those(held_out)} is lost."
    )
    if comparison["gain"] is None:
        return said
    return (
        f"{said} As who gains more loses more, variants are compared where they gain the same, "
        f"{precise(comparison['gain'])} nats per byte, read off each one’s curve through its "
        "learning rates."
    )


def _listed_rates(rates: Sequence[float]) -> str:
    written = [rate_text(rate) for rate in rates]
    if len(rates) == 1:
        return f"a learning rate of {written[0]}"
    few = listed(written) if len(rates) <= 5 else f"from {written[0]} to {written[-1]}"
    return f"learning rates {few}"


def _those(held_out: Sequence[str]) -> str:
    if len(held_out) == 1:
        return f"that of {language_name(held_out[0])}, not trained on, rises by"
    return f"that of {len(held_out)} other languages rises by on average"


def summary(results: Results) -> list[str]:
    """What was found, then what to use; for the terminal."""
    return [*seen(results), *recommended(results)]


def seen(results: Results) -> list[str]:
    """Which variants are better than the reference beyond noise, which are not, which are worse."""
    comparison, found = results["comparison"], at_main_gain(results["comparison"])
    reference = f"“{comparison['reference']}”"
    if not found:
        return [
            f"Nothing can be compared at equal gain: {comparison['why_none']}.",
            *_failed(results),
        ]
    by_verdict: dict[str, list[str]] = {}
    for name in in_order(found):
        by_verdict.setdefault(found[name]["mean"]["verdict"], []).append(name)
    counted_ = next(
        one["comparisons"]["mean"] for one in comparison["at"] if one["gain"] == comparison["gain"]
    )
    said = [_better(found, by_verdict.get("better", []), counted_, reference)]
    if alike := by_verdict.get("no difference"):
        said.append(f"No difference to {reference} beyond noise: {_with_changes(found, alike)}.")
    if worse := by_verdict.get("worse"):
        said.append(f"Worse than {reference}: {_with_changes(found, worse)}.")
    if single := by_verdict.get("one seed"):
        said.append(
            f"Run with one seed, so that noise is not known: {_with_changes(found, single)}."
        )
    said += _worst(found, reference)
    said += _unreached(comparison, found, by_verdict.get("not reached", []))
    return [line for line in [*said, *_failed(results)] if line]


def _better(found: Results, names: Sequence[str], counts: Entry, reference: str) -> str:
    if not counts["tested"]:
        return ""
    chance = (
        f"by chance alone {fixed(counts['better_by_chance'], 1)} of "
        f"{counted(counts['tested'], 'comparison')} would look so"
    )
    if not names:
        return (
            f"No variant loses less on average than {reference} at the same gain beyond noise, of "
            f"{count(counts['tested'])} that were compared with two seeds or more."
        )
    return (
        f"{counted(len(names), 'variant')} of {count(counts['tested'])} "
        f"{'loses' if len(names) == 1 else 'lose'} less on average than {reference} at the same "
        f"gain, beyond noise: {_with_changes(found, names)}; {chance}."
    )


def _with_changes(found: Results, names: Sequence[str]) -> str:
    """``“a” (−62%), “b” (−41%) and 3 more``"""
    parts = [f"“{name}” ({change(found[name]['mean'])})" for name in names[:_NAMED]]
    more = len(names) - len(parts)
    return listed([*parts, f"{count(more)} more"] if more else parts)


def _worst(found: Results, reference: str) -> list[str]:
    names = [
        name
        for name, entries in found.items()
        if entries["mean"]["verdict"] == "better" and entries["worst"]["verdict"] == "worse"
    ]
    if not names:
        return []
    parts = [f"“{name}” ({change(found[name]['worst'])})" for name in names]
    return [
        f"Better on average, but the language that loses most loses more than with {reference}: "
        f"{listed(parts)}."
    ]


def _unreached(comparison: Results, found: Results, names: Sequence[str]) -> list[str]:
    """Variants that a seed has no value of at the gain, by what would help."""
    weak, strong, other = [], [], []
    for name in names:
        ends = [one["gains"] for one in found[name]["mean"]["unreached"]]
        if not ends or None in ends:
            other.append(name)
        elif all(high < comparison["gain"] for _, high in ends):
            weak.append(name)
        else:
            strong.append(name)
    reasons = (
        (weak, "not every seed gains so much at their learning rates; higher ones may"),
        (strong, "not every seed gains so little at their learning rates; lower ones may"),
        (other, "a seed has no run that gave a result"),
    )
    return [f"Not compared: {quoted(which)} ({why})." for which, why in reasons if which]


def _failed(results: Results) -> list[str]:
    failed = results["comparison"]["failed"]
    if not failed:
        return []
    names = list(dict.fromkeys(one["variant"] for one in failed))
    one = len(failed) == 1
    return [
        f"{counted(len(failed), 'run')} failed and {'is' if one else 'are'} left out, of "
        f"{quoted(names)}; a table below says why."
    ]


def recommended(results: Results) -> list[str]:
    """A sentence for what a user may have: no text of other languages, some, some to train on."""
    comparison = results["comparison"]
    if comparison["gain"] is None:
        return []
    chosen, reference = recommend(comparison, results["variants"]), comparison["reference"]
    if not _tested(comparison):
        alone = any(e["mean"]["verdict"] == "one seed" for e in at_main_gain(comparison).values())
        why = (
            "with one seed a difference cannot be told from chance; run three seeds or more"
            if alone
            else "no variant could be compared at this gain"
        )
        return [f"Nothing is recommended: {why}."]
    if chosen["any"] is None:
        return [
            f"No variant that was run with two seeds or more is better than “{reference}” beyond "
            f"noise: use “{reference}” itself, at a learning rate of "
            f"{_reference_rate(comparison)} for this gain, or at a lower one for less forgetting."
        ]
    said, before = [], None
    for choice in CHOICES:
        one = chosen[choice]
        if one is None:
            said.append(f"{_MAY[choice]}, nothing is better than “{reference}” beyond noise.")
        elif one["variant"] == before:
            said.append(f"{_MAY[choice]}, nothing better was found.")
        else:
            said.append(f"{_MAY[choice]}: {_use(comparison, one)}")
        before = one and one["variant"]
    return said


def _tested(comparison: Results) -> bool:
    """Whether any variant was compared with the reference over seeds."""
    (here,) = (one for one in comparison["at"] if one["gain"] == comparison["gain"])
    return here["comparisons"]["mean"]["tested"] > 0


def _reference_rate(comparison: Results) -> str:
    entry = at_main_gain(comparison)[comparison["reference"]]["mean"]
    return rate_text(entry["learning_rate"])


def _use(comparison: Results, one: Entry) -> str:
    name, reference = one["variant"], comparison["reference"]
    entry = at_main_gain(comparison)[name]["mean"]
    said = f"“{name}” at a learning rate of {rate_text(one['learning_rate'])}; on average "
    if entry["relative"] is not None and entry["loss"] > 0:
        said += f"{round(-100 * entry['relative'])}% less is lost than with “{reference}”"
        if entry["relative_interval"]:
            low, high = (round(-100 * end) for end in reversed(entry["relative_interval"]))
            said += f" (95% interval: {low} to {high}%)"
    else:
        said += (
            f"{precise(-entry['difference'])} nats per byte less are lost than with “{reference}”"
        )
    said += "."
    if one["worst"] == "worse":
        said += " The language that loses most loses more, though."
    elif one["worst"] == "no difference":
        said += " What the worst language loses does not differ beyond noise."
    if one["alike"]:
        said += f" Not told apart from it: {_some(one['alike'])}."
    return said


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    parts = [f"“{name}”" for name in names[:_NAMED]]
    return listed([*parts, f"{count(more)} more"] if more > 0 else parts)


def change(entry: Entry) -> str:
    """``−62%``; in nats where the reference loses nothing, ``–`` where there is none."""
    if entry["relative"] is not None:
        return f"{signed(100 * entry['relative'], 0)}%"
    return "–" if entry["difference"] is None else signed(entry["difference"])


def rate_text(rate: float) -> str:
    """``0.00023``, ``1.5e-05``"""
    return f"{rate:.2g}"


def precise(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}".replace("-", "−")


def made(results: Results) -> str:
    """How many runs, where, how long."""
    time = sum(run["seconds"] or 0.0 for run in results["runs"])
    return (
        f"{counted(len(results['runs']), 'run')} on {results['machine']}, {seconds(time)} of "
        f"training in all. Each run’s model was exported, loaded again and evaluated on the same "
        "documents as the base."
    )


def _long(time: float) -> str:
    return seconds(time) if time < 7200 else f"{time / 3600:.1f} hours"
