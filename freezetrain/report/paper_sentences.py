"""Sentences of the paper's page: made from the data, nothing taken for granted."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from freezetrain.report.languages import language_name
from freezetrain.report.numbers import amount, brief, count, fixed, percent
from freezetrain.report.plots.removal import of_ratio, ratios_of
from freezetrain.report.words import counted, listed

Results = Mapping[str, Any]


def introduction(results: Results) -> str:
    """What was done, on what."""
    model, languages = results["model"], results["languages"]
    core = [language_name(code) for code in languages["core"]]
    return (
        f"In {model['name']}, a language model of {amount(model['parameters'])} weights in "
        f"{counted(model['layers'], 'layer')}, freezetrain scored how much the loss of each of "
        f"{counted(len(languages['scored']), 'language')} depends on every weight, and repeated "
        "on it what “Unveiling Linguistic Regions in Large Language Models” reports. The core "
        f"region, the weights of the highest scores in each matrix, comes from {listed(core)}; "
        f"what is lost was measured on held-out text of "
        f"{counted(len(languages['evaluated']), 'language')}."
    )


def summary(results: Results) -> str:
    """How many of the claims hold."""
    claims = results["claims"]
    known = [one["holds"] for one in claims if one["holds"] is not None]
    unknown = len(claims) - len(known)
    said = f"{sum(known)} of {counted(len(known), 'claim')} of the paper hold on this model"
    return f"{said}; {unknown} could not be told." if unknown else f"{said}."


def removal_seen(results: Results) -> str:
    """Mean, least and largest rise without each kind of region of the first ratio."""
    found = of_ratio(results["ablation"]["summary"], ratios_of(results["ablation"]["summary"])[0])
    parts = []
    for name, one in found.items():
        rises = {code: values["rise"] for code, values in one["languages"].items()}
        least, most = min(rises, key=rises.__getitem__), max(rises, key=rises.__getitem__)
        parts.append(
            f"{name} {brief(fmean(rises.values()))} (from {brief(rises[least])} in "
            f"{language_name(least)} to {brief(rises[most])} in {language_name(most)})"
        )
    return f"Mean rise of the loss, nats per byte, by what was zeroed: {'; '.join(parts)}."


def recurring_seen(results: Results) -> str:
    """The dimension that recurs most, beside chance."""
    dimensions = results["dimensions"]
    if not dimensions["recurring"]:
        return "No dimension of the residual stream is among the fullest of any matrix."
    first, regions = dimensions["recurring"][0], counted(len(dimensions["regions"]), "region")
    return (
        f"Dimension {count(first['dimension'])} of the residual stream is among the fullest "
        f"{percent(dimensions['top'])} in {count(first['times'])} of "
        f"{count(dimensions['possible'])} matrices of {regions}; by chance a dimension is in "
        f"{fixed(dimensions['expected'], 1)} on average."
    )


def selectivity_seen(results: Results) -> str:
    """Which languages the regions hit besides their own."""
    languages = results["selectivity"]["dominance"]["languages"]
    known = {code: one for code, one in languages.items() if one["other"] is not None}
    if not known:
        return ""
    nearest = sorted(known, key=lambda code: -known[code]["largest_other"])[:3]
    parts = [
        f"{language_name(known[code]['other'])} ({brief(known[code]['largest_other'])}) by that of "
        f"{language_name(code)}"
        for code in nearest
    ]
    return f"Hit most by the region of another language, in nats per byte: {listed(parts)}."


def overlap_seen(results: Results) -> str:
    """The two languages whose regions have most in common, and the two with least."""
    found = results["overlap"]["languages"]
    names = found["names"]
    pairs = [
        (found["jaccard"][a][b], names[a], names[b], found["expected"][a][b])
        for a in range(len(names))
        for b in range(a)
    ]
    if not pairs:
        return ""
    most, least = max(pairs), min(pairs)
    return (
        f"Most in common have the regions of {language_name(most[2])} and "
        f"{language_name(most[1])} ({percent(most[0])} of the entries in either are in both), "
        f"least those of {language_name(least[2])} and {language_name(least[1])} "
        f"({percent(least[0])}); on average {percent(fmean(pair[0] for pair in pairs))}, by chance "
        f"{percent(fmean(pair[3] for pair in pairs))}."
    )
