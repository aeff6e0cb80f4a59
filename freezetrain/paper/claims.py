"""The claims of the paper, and whether each holds on the model at hand."""

import math
from statistics import fmean

from freezetrain.analysis.effects import NOTHING, rises
from freezetrain.formats import exact_percent, fixed, language_name, percent, perplexity, signed
from freezetrain.paper.results import Claim, PaperResults

Check = tuple[bool | None, str]
"""Whether a claim holds (None: cannot be told), and the figures that say so."""

LITTLE = 0.01  # of the loss with nothing removed: up to so much is nearly nothing

BROKEN = 2.0  # a perplexity so many times as high: one weight broke the model

STABLE = 0.5  # Jaccard of two regions that are much the same: two thirds of each are in both

_NOT_MEASURED = (None, "Not measured here.")


def check_core(results: PaperResults) -> Check:
    """Every language must lose more without the core than without any single control."""
    holds, parts = True, []
    for ratio, effects in results.removed.items():
        if len(effects) < 3:
            continue
        assert results.ablation is not None
        figures = results.ablation.figures
        (core,), *controls = (
            [rises(figures[NOTHING], figures[name]) for name in effects[kind].regions]
            for kind in ("top", "random", "bottom")
        )
        others = [rise for rises_of_kind in controls for rise in rises_of_kind]
        more = sum(rise > max(other[code] for other in others) for code, rise in core.items())
        holds = holds and more == len(core)
        means = [f"{kind} {signed(effect.mean_rise)}" for kind, effect in effects.items()]
        parts.append(
            f"at {exact_percent(ratio)}: {', '.join(means)}; top above every other region in "
            f"{more} of {len(core)} languages"
        )
    if not parts:
        return _NOT_MEASURED
    return holds, f"Mean rise of the loss, nats per byte, {'. '.join(parts)}."


def check_bottom(results: PaperResults) -> Check:
    """No language's loss may change by more than LITTLE of it."""
    largest = {}
    for ratio, effects in results.removed.items():
        if "bottom" in effects:
            assert results.ablation is not None
            before = results.ablation.figures[NOTHING]
            shares = {
                code: rise / before[code].nll_per_byte
                for code, rise in effects["bottom"].rises.items()
            }
            code = max(shares, key=lambda code: abs(shares[code]))
            largest[ratio] = shares[code], code
    if not largest:
        return _NOT_MEASURED
    parts = [
        f"{signed(100 * share, 2)}% at {exact_percent(ratio)} ({language_name(code)})"
        for ratio, (share, code) in largest.items()
    ]
    return (
        all(abs(share) <= LITTLE for share, _ in largest.values()),
        f"Largest change of a language’s loss, as a share of it: {'; '.join(parts)}. Limit: "
        f"{percent(LITTLE)}.",
    )


def check_single_weights(results: PaperResults) -> Check:
    """One weight, worse than any random one, must make a perplexity BROKEN times as high."""
    broken, parts = False, []
    for changed in results.changed.values():
        if not changed.single or not changed.random:
            continue
        worst, random = changed.weights[0], changed.random[0]  # most harmful first
        times = {
            code: _times(after, changed.before[code]) for code, after in worst.perplexity.items()
        }
        code = max(times, key=times.__getitem__)
        broken = broken or (times[code] >= BROKEN and worst.mean_rise > random.mean_rise)
        parts.append(
            f"{changed.title}, the most harmful of {len(changed.weights)}: {worst.what}, mean rise "
            f"{signed(worst.mean_rise)} nats per byte (most harmful random one "
            f"{signed(random.mean_rise)}), perplexity of {language_name(code)} "
            f"{perplexity(changed.before[code])} → {perplexity(worst.perplexity[code])}"
        )
    if not parts:
        return _NOT_MEASURED
    return broken, f"{'. '.join(parts)}. Broken: a perplexity at least {BROKEN:g} times as high."


def _times(after: float | None, before: float | None) -> float:
    """How many times as high a perplexity is; None is an infinite one."""
    if after is None:
        return 1.0 if before is None else math.inf
    return 0.0 if before is None else after / before


def check_directions(results: PaperResults) -> Check:
    """Each kind must gather more along the stream than across it, and more than at random."""
    dimensions = results.dimensions
    if dimensions is None or not dimensions.regions or not dimensions.directions:
        return _NOT_MEASURED
    region, wrong = dimensions.regions[dimensions.shown], []
    for kind, along in dimensions.directions.items():
        across = "columns" if along == "rows" else "rows"
        if region.kind_mean(along, kind) <= max(
            region.kind_mean(across, kind), dimensions.even[along]
        ):
            wrong.append(kind)
    total = len(dimensions.directions)
    parts = []
    for does, along in (("write", "rows"), ("read", "columns")):
        kinds = [kind for kind, way in dimensions.directions.items() if way == along]
        if kinds:
            shares = {
                way: fmean(region.kind_mean(way, kind) for kind in kinds)
                for way in ("rows", "columns")
            }
            parts.append(
                f"those that {does}: rows {percent(shares['rows'])}, columns "
                f"{percent(shares['columns'])}"
            )
    even = f"rows {percent(dimensions.even['rows'])}, columns {percent(dimensions.even['columns'])}"
    return not wrong, (
        f"{total - len(wrong)} of {total} kinds of matrices"
        f"{' (not: ' + ', '.join(wrong) + ')' if wrong else ''}. Mean share of a matrix’s region "
        f"entries in its fullest {percent(dimensions.top)}: {'; '.join(parts)}; random region: "
        f"{even}."
    )


def check_dimensions(results: PaperResults) -> Check:
    """Every language must lose more without the fullest rows and columns than at random."""
    zeroed = results.dimensions and results.dimensions.ablated
    if not zeroed or not zeroed.random:
        return _NOT_MEASURED
    fullest, draws = zeroed.fullest.rises, [draw.rises for draw in zeroed.random]
    more = sum(rise > max(draw[code] for draw in draws) for code, rise in fullest.items())
    random = ", ".join(signed(draw.mean_rise) for draw in zeroed.random)
    return more == len(fullest), (
        f"Mean rise of the loss, nats per byte: fullest {signed(zeroed.fullest.mean_rise)}, random "
        f"ones {random}; fullest above every random draw in {more} of {len(fullest)} languages."
    )


def check_selectivity(results: PaperResults) -> Check:
    """Each region must hurt its own language most."""
    selectivity = results.selectivity
    if selectivity is None:
        return _NOT_MEASURED
    dominance = selectivity.dominance
    if dominance.other is None:
        return None, "Only one language was scored."
    means = f"own language {signed(dominance.own)}, others {signed(dominance.other)}"
    if selectivity.control:
        control = fmean(selectivity.control[code][code] for code in selectivity.languages)
        means += f", own with as many random weights {signed(control)}"
    return dominance.rows == dominance.of, (
        f"{dominance.rows} of {dominance.of} regions hurt their own language most; "
        f"{dominance.columns} of {dominance.of} languages are hurt most by their own region. Mean "
        f"rise of the loss, nats per byte: {means}."
    )


def check_stability(results: PaperResults) -> Check:
    """The least overlap of two halves, or of fewer and all sequences, must be STABLE."""
    lows, parts = [], []
    if (halves := results.overlap.halves) is not None:
        low, code = min(zip(halves.jaccard, halves.names, strict=True))
        lows.append(low)
        parts.append(
            f"two halves of a language’s texts {fixed(fmean(halves.jaccard), 2)} (least: "
            f"{language_name(code)} {fixed(low, 2)}; by chance {fixed(fmean(halves.expected), 3)})"
        )
    if (samples := results.overlap.samples) is not None:
        *fewer, everything = samples.names
        for number, name in enumerate(fewer):
            lows.append(samples.jaccard[number][-1])
            parts.append(f"{name} and {everything} {fixed(lows[-1], 2)}")
    if not parts:
        return _NOT_MEASURED
    return min(lows) >= STABLE, (
        f"Entries in both regions over entries in either (Jaccard): {'; '.join(parts)}. Stable "
        f"from {fixed(STABLE, 1)} on."
    )


_CLAIMS = (
    (
        "Removing the core hurts every language more than removing as many random weights, or "
        "those with the lowest scores",
        "Without the 1% of the weights with the highest scores the model loses its ability in "
        "all 30 languages; without as many random ones it hardly does.",
        check_core,
    ),
    (
        "The weights with the lowest scores are hardly needed",
        "Without the weights with the lowest scores the model stays nearly as it was.",
        check_bottom,
    ),
    (
        "A single weight can break the model",
        "One norm weight of LLaMA-2-13B multiplied by 4, in layer 1 at dimension 2100, takes "
        "the perplexity of Chinese from 5.86 to 257.7.",
        check_single_weights,
    ),
    (
        "The core gathers on few dimensions of the residual stream: rows of the matrices that "
        "write to it, columns of those that read from it",
        "The region gathers on rows in attention output and MLP down projections, on columns "
        "in query, key, value, up and gate projections.",
        check_directions,
    ),
    (
        "Removing the rows and columns on which the core gathers most hurts every language "
        "more than removing as many random ones",
        "The model depends on few dimensions, on which the core lies.",
        check_dimensions,
    ),
    (
        "The region of a language alone hurts that language most",
        "Regions of single languages exist, and removing one harms its own language above "
        "all, and languages that are close to it.",
        check_selectivity,
    ),
    (
        "The regions are stable: other texts of a language, or fewer, give much the same",
        "The paper scores 10,000 and 100,000 sequences of each language.",
        check_stability,
    ),
)


def paper_claims(results: PaperResults) -> list[Claim]:
    """Each claim of the paper, checked on ``results``."""
    return [Claim(claim, paper, *check(results)) for claim, paper, check in _CLAIMS]
