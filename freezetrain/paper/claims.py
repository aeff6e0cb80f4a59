"""The claims of the paper, and whether each holds on the model at hand."""

import math
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from freezetrain.analysis.figures import NOTHING
from freezetrain.formats import (
    brief,
    count,
    counted,
    exact_percent,
    fixed,
    language_name,
    listed,
    percent,
    perplexity,
)
from freezetrain.paper.results import (
    changed_what,
    core_of,
    mean_share,
    of_ratio,
    ratios_of,
    single,
    weight_name,
)

Results = Mapping[str, Any]

Check = tuple[bool | None, str]  # None: cannot be told

LITTLE = 0.01  # of the loss with nothing removed: up to so much is nearly nothing

BROKEN = 2.0  # a perplexity so many times as high: one weight broke the model

STABLE = 0.5  # Jaccard of two regions that are much the same: two thirds of each are in both

_NOT_MEASURED = "Not measured here."


def core(results: Results) -> Check:
    holds, parts = True, []
    for ratio, found in _removed(results, "top", "random", "bottom"):
        top, *others = (
            _rise_without(results, name)
            for kind in ("top", "random", "bottom")
            for name in found[kind]["regions"]
        )
        more = sum(rise > max(of[code] for of in others) for code, rise in top.items())
        holds = holds and more == len(top)
        parts.append(
            f"at {exact_percent(ratio)}, {brief(found['top']['mean_rise'])} against "
            f"{brief(found['random']['mean_rise'])} (random) and "
            f"{brief(found['bottom']['mean_rise'])} (lowest), more than each of them in {more} of "
            f"{counted(len(top), 'language')}"
        )
    if not parts:
        return None, _NOT_MEASURED
    return holds, (
        f"Mean rise of the loss, nats per byte: {'; '.join(parts)}. Random is the mean of "
        "all draws, and each draw is compared."
    )


def bottom(results: Results) -> Check:
    shares = {}
    for ratio, found in _removed(results, "bottom"):
        before = results["ablation"]["figures"][NOTHING]
        changes = {
            code: rise * before[code]["bytes"] / before[code]["nll"]
            for code, rise in _rise(found["bottom"]).items()
        }
        most = max(changes, key=lambda code: abs(changes[code]))
        shares[ratio] = changes[most], most
    if not shares:
        return None, _NOT_MEASURED
    parts = [
        f"{_share(change)} at {exact_percent(ratio)} ({language_name(code)})"
        for ratio, (change, code) in shares.items()
    ]
    return (
        all(abs(change) <= LITTLE for change, _ in shares.values()),
        f"The largest change of any language’s loss, as a share of it: {listed(parts)}; up to "
        f"{percent(LITTLE)} counts as nearly nothing.",
    )


def single_weights(results: Results) -> Check:
    changes = (results.get("weights") or {}).values()
    found = [one for one in changes if one and one["weights"] and one["random"] and single(one)]
    if not found:
        return None, _NOT_MEASURED
    broken, parts = False, []
    for one in found:
        worst, random = one["weights"][0], one["random"][0]["mean_rise"]  # most harmful first
        times = {
            code: _times(worst["perplexity"][code], one["before"][code]) for code in worst["rise"]
        }
        code = max(times, key=times.__getitem__)
        broken = broken or (times[code] >= BROKEN and worst["mean_rise"] > random)
        parts.append(
            f"{changed_what(one)}: the most harmful of {count(len(one['weights']))}, "
            f"{weight_name(worst)}, changes the loss by {brief(worst['mean_rise'])} nats per byte "
            f"on average ({brief(random)} the most harmful random one) and the perplexity of "
            f"{language_name(code)} from {perplexity(one['before'][code])} to "
            f"{perplexity(worst['perplexity'][code])}"
        )
    return broken, (
        f"{'. '.join(parts)}. A model counts as broken where the perplexity of a "
        "language at least doubles."
    )


def directions(results: Results) -> Check:
    dimensions = results.get("dimensions") or {}
    if not dimensions.get("regions") or not dimensions.get("directions"):
        return None, _NOT_MEASURED
    region = dimensions["regions"][core_of(dimensions)]
    ways, wrong = dimensions["directions"], []
    for kind, way in ways.items():
        other = "columns" if way == "rows" else "rows"
        here, there = (mean_share(region[direction], kind) for direction in (way, other))
        if here <= max(there, dimensions["even"][way]):
            wrong.append(kind)
    parts = [
        f"of {way} {listed([f'{percent(share)} in those that {does}' for does, share in of])}"
        for way in ("rows", "columns")
        for of in [_of_directions(region[way], ways)]
    ]
    so = f"So in {len(ways) - len(wrong)} of {counted(len(ways), 'kind')} of matrices"
    if 0 < len(wrong) < len(ways):
        so += f", not in {listed(wrong)}"
    return not wrong, (
        f"{so}. Mean share of a matrix’s region "
        f"entries in its fullest {percent(dimensions['top'])}: {'; '.join(parts)}. A random region "
        f"as large has {percent(dimensions['even']['rows'])} on rows and "
        f"{percent(dimensions['even']['columns'])} on columns."
    )


def dimensions(results: Results) -> Check:
    ablated = (results.get("dimensions") or {}).get("ablated")
    if not ablated or not ablated["random"]:
        return None, _NOT_MEASURED
    fullest, random = _rise(ablated["fullest"]), [_rise(one) for one in ablated["random"]]
    more = sum(rise > max(of[code] for of in random) for code, rise in fullest.items())
    return more == len(fullest), (
        f"Mean rise of the loss, nats per byte: {brief(ablated['fullest']['mean_rise'])} against "
        f"{listed([brief(one['mean_rise']) for one in ablated['random']])} with as many random "
        f"ones; more than any of them in {more} of {counted(len(fullest), 'language')}."
    )


def selectivity(results: Results) -> Check:
    found = results.get("selectivity")
    if not found:
        return None, _NOT_MEASURED
    dominance = found["dominance"]
    if dominance["of"] < 2:
        return None, "Only one language was scored."
    seen = (
        f"The region of {dominance['rows']} of {counted(dominance['of'], 'language')} hurts its "
        f"own language most, and {dominance['columns']} are hurt most by their own region. Mean "
        f"rise of the loss, nats per byte: {brief(dominance['own'])} in the region’s own "
        f"language, {brief(dominance['other'])} in the others"
    )
    if controls := found.get("control"):
        control = fmean(controls[code][code] for code in found["languages"])
        seen += f"; {brief(control)} in the own with as many random weights"
    return dominance["rows"] == dominance["of"], f"{seen}."


def stability(results: Results) -> Check:
    overlap, lows, parts = results.get("overlap") or {}, [], []
    if halves := overlap.get("halves"):
        least = min(zip(halves["jaccard"], halves["names"], strict=True))
        lows.append(least[0])
        parts.append(
            f"between two halves of a language’s texts {fixed(fmean(halves['jaccard']), 2)} on "
            f"average, least in {language_name(least[1])} ({fixed(least[0], 2)}), where chance "
            f"gives {fixed(fmean(halves['expected']), 3)}"
        )
    if (samples := overlap.get("samples")) and len(samples["names"]) > 1:
        lows += [row[-1] for row in samples["jaccard"][:-1]]
        parts += [
            f"between the first {first} and {samples['names'][-1]} {fixed(row[-1], 2)}"
            for first, row in zip(samples["names"][:-1], samples["jaccard"], strict=False)
        ]
    if not parts:
        return None, _NOT_MEASURED
    return min(lows) >= STABLE, (
        f"Entries in both regions over entries in either (Jaccard): {'; '.join(parts)}. From "
        f"{fixed(STABLE, 1)} on, two thirds in common, they count as much the same."
    )


def _removed(results: Results, *kinds: str) -> Iterator[tuple[float, dict[str, Any]]]:
    """(Ratio, kind → what the summary says of it) wherever all of ``kinds`` were removed."""
    summary = (results.get("ablation") or {}).get("summary") or []
    for ratio in ratios_of(summary):
        found = of_ratio(summary, ratio)
        if ratio is not None and found.keys() >= set(kinds):
            yield ratio, found


def _rise(one: Mapping[str, Any]) -> dict[str, float]:
    return {code: values["rise"] for code, values in one["languages"].items()}


def _rise_without(results: Results, name: str) -> dict[str, float]:
    """Of each language, with one region zeroed."""
    figures = results["ablation"]["figures"]
    return {
        code: (figures[name][code]["nll"] - before["nll"]) / before["bytes"]
        for code, before in figures[NOTHING].items()
    }


def _share(change: float) -> str:
    return "less than 0.01%" if abs(change) < 1e-4 else percent(change).replace("-", "−")


def _times(after: float | None, before: float | None) -> float:
    """How many times as high a perplexity is; None is an infinite one."""
    if after is None:
        return 1.0 if before is None else math.inf
    return 0.0 if before is None else after / before


def _of_directions(
    by_layer: Mapping[str, Mapping[str, float | None]], ways: Mapping[str, str]
) -> list[tuple[str, float]]:
    """Mean share of the kinds that write to the stream, and of those that read from it."""
    found = []
    for does, way in (("write", "rows"), ("read", "columns")):
        shares = [mean_share(by_layer, kind) for kind, of in ways.items() if of == way]
        if shares:
            found.append((does, fmean(shares)))
    return found


Claim = dict[str, Any]


def paper_claims(results: Results) -> list[Claim]:
    """``claim``, ``paper`` (what the paper says), ``holds`` (None: cannot be told) and ``seen``."""
    return [
        _claim(
            "Removing the core hurts every language more than removing as many random weights, or "
            "those with the lowest scores",
            "Without the 1% of the weights with the highest scores the model loses its ability in "
            "all 30 languages; without as many random ones it hardly does.",
            core(results),
        ),
        _claim(
            "The weights with the lowest scores are hardly needed",
            "Without the weights with the lowest scores the model stays nearly as it was.",
            bottom(results),
        ),
        _claim(
            "A single weight can break the model",
            "One norm weight of LLaMA-2-13B multiplied by 4, in layer 1 at dimension 2100, takes "
            "the perplexity of Chinese from 5.86 to 257.7.",
            single_weights(results),
        ),
        _claim(
            "The core gathers on few dimensions of the residual stream: rows of the matrices that "
            "write to it, columns of those that read from it",
            "The region gathers on rows in attention output and MLP down projections, on columns "
            "in query, key, value, up and gate projections.",
            directions(results),
        ),
        _claim(
            "Removing the rows and columns on which the core gathers most hurts every language "
            "more than removing as many random ones",
            "The model depends on few dimensions, on which the core lies.",
            dimensions(results),
        ),
        _claim(
            "The region of a language alone hurts that language most",
            "Regions of single languages exist, and removing one harms its own language above "
            "all, and languages that are close to it.",
            selectivity(results),
        ),
        _claim(
            "The regions are stable: other texts of a language, or fewer, give much the same",
            "The paper scores 10,000 and 100,000 sequences of each language.",
            stability(results),
        ),
    ]


def _claim(claim: str, paper: str, found: Check) -> Claim:
    return {"claim": claim, "paper": paper, "holds": found[0], "seen": found[1]}
