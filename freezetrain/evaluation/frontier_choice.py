"""Which variant to use: the best that is better than the reference, by what it needs."""

from collections.abc import Mapping, Sequence
from typing import Any

from freezetrain.evaluation.frontier_intervals import t_interval

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
        return unreached, 0.0 if unreached else _against(entry)

    return sorted(found, key=key)


def _against(entry: Mapping[str, Any]) -> float:
    """The mean difference to the reference; 0 for itself."""
    return entry["difference"] or 0.0


def _best(
    table: Mapping[str, Any], better: Mapping[str, Any], allowed: list[str]
) -> dict[str, Any] | None:
    if not allowed:
        return None
    name = min(allowed, key=lambda one: _against(better[one]))
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
