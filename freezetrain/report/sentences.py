"""Sentences that say what the figures show: made from the data, nothing taken for granted."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from freezetrain.report.languages import language_name
from freezetrain.report.numbers import amount, brief, count, percent
from freezetrain.report.plots.ablation import rises
from freezetrain.report.words import counted, listed, quoted


def introduction(results: Mapping[str, Any]) -> str:
    """What was done, in two sentences."""
    model, region = results["model"], results["region"]
    built_in = "the small base that comes with freezetrain" if model["built_in"] else model["name"]
    scored = results["score_languages"]
    runs = quoted(list(results["runs"]))
    return (
        f"In a language model of {amount(model['parameters'])} weights ({built_in}), freezetrain "
        f"looked for those that the loss of {counted(len(scored), 'language')} "
        f"({listed([language_name(code) for code in scored])}) depends on most: the top "
        f"{percent(results['settings']['ratio'])} of each weight matrix, "
        f"{count(region['entries'])} weights in all, are called the core region. That region was "
        "set to zero to see what "
        f"{counted(len(results['languages']), 'language')} lose by it, and then the model was "
        f"trained further on {language_name(results['target'])} for "
        f"{counted(results['settings']['max_steps'], 'step')}, once for each of the runs {runs}, "
        f"while all the other languages were watched.{_repeats(results)}"
    )


def _repeats(results: Mapping[str, Any]) -> str:
    repeats = max((len(run.get("repeats", ())) for run in results["runs"].values()), default=0)
    if not repeats:
        return ""
    return (
        f" Each run was repeated with {counted(repeats, 'other data order')}; what follows shows "
        "the first, where nothing else is said."
    )


def ablation_seen(results: Mapping[str, Any]) -> str:
    """Mean, least and largest rise of each zeroed region."""
    parts = []
    for name, by_language in rises(results["ablation"]).items():
        low, high = min(by_language.values()), max(by_language.values())
        parts.append(
            f"{brief(fmean(by_language.values()))} with {name} zeroed "
            f"({brief(low)} to {brief(high)})"
        )
    many = counted(len(results["languages"]), "language")
    return f"The loss of {many} changes on average, in bits per byte, by {listed(parts)}."


def last_forgetting(runs: Mapping[str, Any]) -> dict[str, Any]:
    """Run → what its last evaluation says of forgetting."""
    return {name: run["evaluations"][-1]["forgetting"] for name, run in runs.items()}


def forgetting_seen(results: Mapping[str, Any]) -> str:
    """Mean change of each run; of two runs, for how many languages which ended lower."""
    last = last_forgetting(results["runs"])
    parts = []
    for name, of_run in last.items():
        gain = of_run["target_gain"]
        gained = "" if gain is None else f", that of the target by {brief(0.0 - gain)}"
        parts.append(
            f"In the run “{name}” the mean loss of the held-out languages changed by "
            f"{brief(of_run['mean'])} nats per byte{gained}."
        )
    seen = " ".join(parts)
    if len(last) == 2:
        (first, one), (second, two) = last.items()
        differences = [
            value["delta_nll_per_byte"] - two["languages"][code]["delta_nll_per_byte"]
            for code, value in one["languages"].items()
        ]
        less = sum(difference < 0 for difference in differences)
        more = sum(difference > 0 for difference in differences)
        seen += (
            f" The loss ended lower in the run “{first}” for {less} of "
            f"{counted(len(differences), 'held-out language')}, in the run “{second}” for {more}."
        )
    return seen


def course_seen(results: Mapping[str, Any]) -> str:
    """The held-out language with the largest change at the end of each run."""
    parts = []
    for name, of_run in last_forgetting(results["runs"]).items():
        worst = of_run["worst"]
        parts.append(
            f"{language_name(worst['language'])} ({brief(worst['delta_nll_per_byte'])}) in the "
            f"run “{name}”"
        )
    return f"The held-out language that fared worst, in nats per byte: {listed(parts)}."


def location_seen(results: Mapping[str, Any]) -> str:
    """Mean share in the fullest rows and columns, the fullest matrix, and the random baseline."""
    region, parts = results["region"], []
    for direction in ("rows", "columns"):
        by_matrix: dict[str, list[float]] = {}
        for layer in region[direction].values():
            for matrix, share in layer.items():
                if share is not None:
                    by_matrix.setdefault(matrix, []).append(share)
        if not by_matrix:
            continue
        means = {matrix: fmean(shares) for matrix, shares in by_matrix.items()}
        fullest = max(means, key=means.__getitem__)
        every = [share for shares in by_matrix.values() for share in shares]
        parts.append(
            f"The fullest 5% of {direction} hold {percent(fmean(every))} of a matrix’s region "
            f"entries on average, most in {fullest} ({percent(means[fullest])}); of a random "
            f"region as large, {percent(region['even'][direction])}."
        )
    return " ".join(parts)


def verify_seen(results: Mapping[str, Any]) -> list[str]:
    """What the bit for bit comparison of each run's model with the base counted."""
    seen = []
    for name, run in results["runs"].items():
        if verify := run.get("verify"):
            elsewhere = verify.get("changed_elsewhere")
            changed = "" if elsewhere is None else f"; {count(elsewhere)} other weights changed"
            seen.append(
                f"Run “{name}”: of {count(verify['checked'])} weights of the region, "
                f"{count(verify['moved'])} differ from the base{changed}."
            )
    return seen
