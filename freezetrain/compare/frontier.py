"""Variants at equal target gain: who forgets less than the reference, beyond noise over seeds."""

from collections.abc import Mapping, Sequence
from math import exp, log
from statistics import fmean, median
from typing import Any

from freezetrain.compare.curves import (
    MEASURES,
    Curve,
    at_gain,
    curves,
    failure,
    ratio_interval,
    span,
    t_interval,
)
from freezetrain.errors import UserError, near_misses
from freezetrain.evaluation.ratio import LEVEL

Run = Mapping[str, Any]

BETTER, WORSE, ALIKE = "better", "worse", "no difference"

ONE_SEED, UNREACHED, REFERENCE = "one seed", "not reached", "reference"

TESTED = (BETTER, WORSE, ALIKE)

BY_CHANCE = (1 - LEVEL) / 2  # of variants that are as good as the reference, found better


def compare_variants(
    runs: Sequence[Run],
    *,
    reference: str = "plain",
    gain: float | None = None,
    variants: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Mean and worst loss of each variant at equal gains, against ``reference``; ready for JSON.

    ``runs``: mappings with ``variant``, ``learning_rate``, ``seed``, ``gain``, ``mean``, ``worst``
    (``delta_nll_per_byte``), ``seconds`` and ``failed`` (None, or why); losses and gains in nats
    per byte. Each variant and seed is a curve through its learning rates, read by ``at_gain``.
    Gains: the mean gain over seeds at each learning rate of the reference, drawn in to what all
    its seeds reach; the main one is ``gain``, or else that of the second highest rate, without
    those beyond the rate that gains most. None and ``why_none`` says why where the reference has
    no gain in common.

    A difference is paired by seed, as runs of one seed see the same data in the same order; its
    interval is Student's t over seeds, 95%. A ``verdict`` is ``better`` or ``worse`` where that
    leaves out 0, else ``no difference``; ``one seed`` has no interval; ``not reached`` is that of a
    variant that a seed has no value of, what is told of it holds for the others. With ``variants``,
    as in compare's results, a ``recommendation`` is added.

    Raises ``UserError`` for a reference that no run is of, or a ``gain`` that it does not reach.
    """
    names = list(dict.fromkeys(run["variant"] for run in runs))
    if reference not in names:
        raise UserError(
            f"expected runs of the reference {reference!r}{near_misses(reference, names)}, got "
            f"runs of {', '.join(map(repr, names)) or 'nothing'}; add it to the variants"
        )
    found = curves(runs)
    of_reference = found.get(reference, {})
    reached = span(of_reference.values())
    gains, main = _gains(of_reference, reached)
    if gain is not None and gains and reached is not None:
        if not reached[0] <= gain <= reached[1]:
            raise UserError(
                f"expected a gain that each seed of {reference!r} reaches, {reached[0]:.4g} to "
                f"{reached[1]:.4g} nats per byte, got {gain:g}; choose one of these, or give "
                f"{reference!r} other learning rates"
            )
        main, gains = gain, sorted({*gains, gain})
    seeds = {
        name: sorted({run["seed"] for run in runs if run["variant"] == name}) for name in names
    }
    tables = [(one, _at(found, names, seeds, reference, one)) for one in gains]
    comparison: dict[str, Any] = {
        "reference": reference,
        "level": LEVEL,
        "gain": main,
        "gains": gains,
        "range": None if reached is None else list(reached),
        "why_none": None if gains else _why_none(reference, of_reference),
        "at": [
            {"gain": one, "variants": table, "comparisons": _counted(table)}
            for one, table in tables
        ],
        "variants": _facts(runs, found, names, reference),
        "failed": [
            {key: run[key] for key in ("variant", "learning_rate", "seed")} | {"failed": why}
            for run in runs
            if (why := failure(run)) is not None
        ],
    }
    if variants is not None:
        comparison["recommendation"] = recommend(comparison, variants)
    return comparison


def _gains(
    of_seeds: Mapping[int, Curve], reached: tuple[float, float] | None
) -> tuple[list[float], float | None]:
    """The gains of the reference, ascending, and the main one.

    That is the gain at the second highest of its learning rates, without those beyond the one that
    gains most.
    """
    if reached is None or all(len(curve) < 2 for curve in of_seeds.values()):
        return [], None
    by_rate: dict[float, list[float]] = {}
    for curve in of_seeds.values():
        for point in curve:
            by_rate.setdefault(point.learning_rate, []).append(point.gain)
    low, high = reached
    means = [fmean(by_rate[rate]) for rate in sorted(by_rate)]
    rising = means[: means.index(max(means)) + 1]
    drawn_in = {mean: min(max(mean, low), high) for mean in means}
    return sorted({*drawn_in.values()}), drawn_in[rising[max(0, len(rising) - 2)]]


def _why_none(reference: str, of_seeds: Mapping[int, Curve]) -> str:
    if not of_seeds:
        return f"no run of {reference!r} gave a result"
    if all(len(curve) < 2 for curve in of_seeds.values()):
        return f"{reference!r} was run at one learning rate, and a curve needs two or more"
    return f"the seeds of {reference!r} have no gain in common: give it more learning rates"


def _at(
    found: Mapping[str, Mapping[int, Curve]],
    names: Sequence[str],
    seeds: Mapping[str, Sequence[int]],
    reference: str,
    gain: float,
) -> dict[str, dict[str, Any]]:
    """Variant → measure → what it loses at ``gain``, and against the reference."""
    table: dict[str, dict[str, Any]] = {}
    for name in names:
        curves_of = found.get(name, {})
        table[name] = {}
        for measure in MEASURES:
            own = _by_seed(curves_of, gain, measure)
            against = _by_seed(found[reference], gain, measure)
            asked = [seed for seed in seeds[name] if seed in against]
            entry = _of_seeds(own)
            entry["unreached"] = [
                {"seed": seed, "gains": _ends(curves_of.get(seed, []))}
                for seed in asked
                if seed not in own
            ]
            table[name][measure] = entry | _against(own, against, name == reference)
            if entry["unreached"] or not own:
                table[name][measure]["verdict"] = UNREACHED
    return table


def _by_seed(
    curves_of: Mapping[int, Curve], gain: float, measure: str
) -> dict[int, tuple[float, float]]:
    read = {seed: at_gain(curve, gain, measure) for seed, curve in sorted(curves_of.items())}
    return {seed: value for seed, value in read.items() if value is not None}


def _of_seeds(own: Mapping[int, tuple[float, float]]) -> dict[str, Any]:
    losses = [loss for loss, _ in own.values()]
    interval = t_interval(losses)
    rates = [rate for _, rate in own.values()]
    return {
        "loss": fmean(losses) if own else None,
        "interval": interval and list(interval),
        "by_seed": [{"seed": seed, "loss": loss} for seed, (loss, _) in own.items()],
        "learning_rate": exp(fmean(map(log, rates))) if own else None,
    }


def _against(
    own: Mapping[int, tuple[float, float]],
    reference: Mapping[int, tuple[float, float]],
    is_reference: bool,
) -> dict[str, Any]:
    """Difference to the reference over the seeds that both reach, and relative to its loss."""
    empty = dict.fromkeys(("difference", "difference_interval", "relative", "relative_interval"))
    common = [seed for seed in own if seed in reference]
    if is_reference:
        return {**empty, "verdict": REFERENCE}
    if not common:
        return {**empty, "verdict": UNREACHED}
    losses, before = ([of[seed][0] for seed in common] for of in (own, reference))
    differences = [a - b for a, b in zip(losses, before, strict=True)]
    interval = t_interval(differences)
    relative = of_ratio = None
    if fmean(before) > 0:
        relative, of_ratio = fmean(differences) / fmean(before), ratio_interval(losses, before)
    return {
        "difference": fmean(differences),
        "difference_interval": interval and list(interval),
        "relative": relative,
        "relative_interval": of_ratio and [end - 1 for end in of_ratio],
        "verdict": _verdict(interval),
    }


def _verdict(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return ONE_SEED
    return BETTER if interval[1] < 0 else WORSE if interval[0] > 0 else ALIKE


def _ends(curve: Curve) -> list[float] | None:
    gains = [point.gain for point in curve]
    return [min(gains), max(gains)] if gains else None


def _counted(table: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """How many variants were compared with the reference, and what chance alone would give."""
    found = {}
    for measure in MEASURES:
        verdicts = [entries[measure]["verdict"] for entries in table.values()]
        tested = sum(verdict in TESTED for verdict in verdicts)
        found[measure] = {
            "tested": tested,
            BETTER: verdicts.count(BETTER),
            WORSE: verdicts.count(WORSE),
            "better_by_chance": BY_CHANCE * tested,
        }
    return found


def _facts(
    runs: Sequence[Run],
    found: Mapping[str, Mapping[int, Curve]],
    names: Sequence[str],
    reference: str,
) -> dict[str, dict[str, Any]]:
    """Of each variant: its runs, the gains that all its seeds reach, its time."""
    facts: dict[str, dict[str, Any]] = {}
    for name in names:
        own = [run for run in runs if run["variant"] == name]
        reached = span(found.get(name, {}).values())
        facts[name] = {
            "runs": len(own),
            "seeds": len({run["seed"] for run in own}),
            "failed": sum(failure(run) is not None for run in own),
            "range": reached and list(reached),
            "relative_seconds": _relative_seconds(runs, name, reference),
        }
    return facts


def _relative_seconds(runs: Sequence[Run], name: str, reference: str) -> float | None:
    """Median training time over the reference's, on the machine on which most runs of both are."""
    times: dict[Any, dict[str, list[float]]] = {}
    for run in runs:
        if run["variant"] in (name, reference) and failure(run) is None and run.get("seconds"):
            here = times.setdefault(run.get("machine"), {name: [], reference: []})
            here[run["variant"]].append(run["seconds"])
    both = [here for here in times.values() if here[name] and here[reference]]
    if not both:
        return None
    most = max(both, key=lambda here: len(here[name]))
    return median(most[name]) / median(most[reference])


CHOICES = ("no_old_texts", "no_replay", "any")  # what a user may have, least first


def recommend(comparison: Mapping[str, Any], variants: Mapping[str, Any]) -> dict[str, Any]:
    """For each of ``CHOICES`` the variant with the least mean loss at the main gain, or None.

    Only those whose mean loss is ``better`` than the reference's. ``comparison``: of
    ``compare_variants``; ``variants``: name → ``reads_old`` (held-out languages' texts made its
    region or penalty) and ``trained_on_old`` (share of its sequences that are replayed). ``alike``
    are the other better ones whose difference to it, paired by seed, holds 0.
    """
    table = at_main_gain(comparison)
    better = {
        name: entries["mean"]
        for name, entries in table.items()
        if entries["mean"]["verdict"] == "better"
    }
    allowed = {
        "no_old_texts": [
            name
            for name in better
            if not variants[name]["reads_old"] and not variants[name]["trained_on_old"]
        ],
        "no_replay": [name for name in better if not variants[name]["trained_on_old"]],
        "any": list(better),
    }
    return {choice: _best(table, better, allowed[choice]) for choice in CHOICES}


def at_main_gain(comparison: Mapping[str, Any]) -> Mapping[str, Any]:
    """Variant → measure → values at the main gain; empty where there is none."""
    for one in comparison["at"]:
        if one["gain"] == comparison["gain"]:
            return one["variants"]
    return {}


def in_order(found: Mapping[str, Any]) -> Sequence[str]:
    """Variants by mean loss against the reference's; those that are not reached last, as given.

    Not by the loss itself, which is of other seeds where a variant was run with fewer.
    """

    def key(name: str) -> tuple[bool, float]:
        entry = found[name]["mean"]
        unreached = entry["verdict"] == "not reached"
        return unreached, 0.0 if unreached else _against_reference(entry)

    return sorted(found, key=key)


def _against_reference(entry: Mapping[str, Any]) -> float:
    """The mean difference to the reference; 0 for itself."""
    return entry["difference"] or 0.0


def _best(
    table: Mapping[str, Any], better: Mapping[str, Any], allowed: list[str]
) -> dict[str, Any] | None:
    if not allowed:
        return None
    name = min(allowed, key=lambda one: _against_reference(better[one]))
    return {
        "variant": name,
        "learning_rate": better[name]["learning_rate"],
        "loss": better[name]["loss"],
        "relative": better[name]["relative"],
        "worst": table[name]["worst"]["verdict"],
        "alike": [one for one in allowed if one != name and not _apart(better[one], better[name])],
    }


def _apart(one: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
    losses, of_best = (
        {each["seed"]: each["loss"] for each in entry["by_seed"]} for entry in (one, best)
    )
    differences = [loss - of_best[seed] for seed, loss in losses.items() if seed in of_best]
    interval = t_interval(differences)
    return interval is not None and interval[0] > 0
