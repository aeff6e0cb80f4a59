"""Variants at equal target gain: which loses less than the reference, beyond noise over seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any

from freezetrain.compare.curves import Curve, common_range, curves_of, gain_range, read_curve
from freezetrain.compare.results import (
    CHOICES,
    MEASURES,
    AtGain,
    Choice,
    CompareResults,
    Comparison,
    Counts,
    FailedRun,
    Interval,
    LossAtGain,
    ModelFacts,
    RunResult,
    SeedLoss,
    Unreached,
    VariantFacts,
    VariantRuns,
    Verdict,
)
from freezetrain.errors import UserError, near_misses
from freezetrain.evaluation.ratio import LEVEL, students_t

BY_CHANCE = (1 - LEVEL) / 2  # of variants that are as good as the reference, found better


def compare_variants(
    runs: Sequence[RunResult],
    *,
    reference: str = "plain",
    gain: float | None = None,
    variants: Mapping[str, VariantFacts] | None = None,
) -> Comparison:
    """Compare the variants of ``runs`` at equal gains.

    Each variant and seed is a curve through its learning rates, read by :func:`read_curve`. Gains:
    the mean gain over seeds at each learning rate of the reference, drawn in to what all its seeds
    reach; the main one is ``gain``, or else that of the second highest rate, without those beyond
    the rate that gains most. None and ``why_none`` says why where the reference has no gain in
    common.

    A difference is paired by seed, as runs of one seed see the same data in the same order. A
    verdict is ``better`` or ``worse`` where its interval leaves out 0, else ``no difference``;
    ``one seed`` has no interval; ``not reached`` is that of a variant that a seed has no value of,
    and its figures are of the other seeds. With ``variants`` there is a recommendation.

    Raises ``UserError`` for a reference that no run is of, or a ``gain`` that it does not reach.
    """
    names = list(dict.fromkeys(run.variant for run in runs))
    if reference not in names:
        raise UserError(
            f"expected runs of the reference {reference!r}{near_misses(reference, names)}, got "
            f"runs of {', '.join(map(repr, names)) or 'nothing'}; add it to the variants"
        )
    curves = curves_of(runs)
    of_reference = curves.get(reference, {})
    reached = common_range(of_reference.values())
    gains, main = _gains(of_reference, reached)
    if gain is not None and gains and reached is not None:
        if not reached[0] <= gain <= reached[1]:
            raise UserError(
                f"expected a gain that each seed of {reference!r} reaches, {reached[0]:.4g} to "
                f"{reached[1]:.4g} nats per byte, got {gain:g}; choose one of these, or give "
                f"{reference!r} other learning rates"
            )
        main, gains = gain, sorted({*gains, gain})
    seeds = {name: sorted({run.seed for run in runs if run.variant == name}) for name in names}
    at = [_at_gain(curves, seeds, reference, each) for each in gains]
    at_main = next((each for each in at if each.gain == main), None)
    return Comparison(
        reference=reference,
        level=LEVEL,
        gain=main,
        gains=gains,
        range=reached,
        why_none=None if gains else _why_none(reference, of_reference),
        at=at,
        variants={
            name: _variant_runs(runs, curves.get(name, {}), name, reference) for name in names
        },
        failed=[
            FailedRun(run.variant, run.learning_rate, run.seed, run.problem)
            for run in runs
            if run.problem is not None
        ],
        recommendation={} if variants is None else _recommend(at_main, variants),
    )


def stored_results(values: Mapping[str, Any]) -> CompareResults:
    """The results of a results.json, its runs compared anew at its main gain."""
    variants = {name: VariantFacts(**facts) for name, facts in values["variants"].items()}
    runs = [RunResult.from_dict(run) for run in values["runs"]]
    before = values["comparison"]
    same = ("target", "languages", "learning_rates", "seeds", "base", "settings")
    return CompareResults(
        model=ModelFacts(**values["model"]),
        variants=variants,
        runs=runs,
        comparison=compare_variants(
            runs, reference=before["reference"], gain=before["gain"], variants=variants
        ),
        **{name: values[name] for name in same},
    )


def _gains(
    curves: Mapping[int, Curve], reached: Interval | None
) -> tuple[list[float], float | None]:
    """The gains of the reference, ascending, and the main one."""
    if reached is None or all(len(curve) < 2 for curve in curves.values()):
        return [], None
    by_rate: dict[float, list[float]] = {}
    for curve in curves.values():
        for run in curve:
            by_rate.setdefault(run.learning_rate, []).append(run.gain or 0.0)
    low, high = reached
    means = [fmean(by_rate[rate]) for rate in sorted(by_rate)]
    rising = means[: means.index(max(means)) + 1]
    drawn_in = {mean: min(max(mean, low), high) for mean in means}
    return sorted({*drawn_in.values()}), drawn_in[rising[max(0, len(rising) - 2)]]


def _why_none(reference: str, curves: Mapping[int, Curve]) -> str:
    if not curves:
        return f"no run of {reference!r} gave a result"
    if all(len(curve) < 2 for curve in curves.values()):
        return f"{reference!r} was run at one learning rate, and a curve needs two or more"
    return f"the seeds of {reference!r} have no gain in common: give it more learning rates"


def _at_gain(
    curves: Mapping[str, Mapping[int, Curve]],
    seeds: Mapping[str, Sequence[int]],
    reference: str,
    gain: float,
) -> AtGain:
    against = {measure: _by_seed(curves[reference], gain, measure) for measure in MEASURES}
    variants = {
        name: {
            measure: _loss_at_gain(
                curves.get(name, {}), seeds[name], gain, measure, against[measure],
                name == reference,
            )
            for measure in MEASURES
        }
        for name in seeds
    }  # fmt: skip
    return AtGain(gain, variants, {m: _count(v[m] for v in variants.values()) for m in MEASURES})


def _by_seed(
    curves: Mapping[int, Curve], gain: float, measure: str
) -> dict[int, tuple[float, float]]:
    """Seed → (loss, learning rate) at ``gain``, of those that reach it."""
    read = {seed: read_curve(curve, gain, measure) for seed, curve in sorted(curves.items())}
    return {seed: reading for seed, reading in read.items() if reading is not None}


def _loss_at_gain(
    curves: Mapping[int, Curve],
    seeds: Sequence[int],
    gain: float,
    measure: str,
    against: Mapping[int, tuple[float, float]],
    is_reference: bool,
) -> LossAtGain:
    """``seeds`` are all that the variant was run with, ``against`` is what the reference gives."""
    own = _by_seed(curves, gain, measure)
    losses = [loss for loss, _ in own.values()]
    unreached = [
        Unreached(seed, gain_range(curves.get(seed, [])))
        for seed in seeds
        if seed in against and seed not in own
    ]
    common = [] if is_reference else [seed for seed in own if seed in against]
    paired, before = [own[seed][0] for seed in common], [against[seed][0] for seed in common]
    differences = [loss - other for loss, other in zip(paired, before, strict=True)]
    interval = t_interval(differences)
    has_ratio = bool(common) and fmean(before) > 0
    ratio = ratio_interval(paired, before) if has_ratio else None
    verdict: Verdict = "reference" if is_reference else _verdict(interval)
    return LossAtGain(
        loss=fmean(losses) if own else None,
        interval=t_interval(losses),
        by_seed=[SeedLoss(seed, loss) for seed, (loss, _) in own.items()],
        learning_rate=math.exp(fmean(math.log(rate) for _, rate in own.values())) if own else None,
        unreached=unreached,
        difference=fmean(differences) if common else None,
        difference_interval=interval,
        relative=fmean(differences) / fmean(before) if has_ratio else None,
        relative_interval=ratio and (ratio[0] - 1, ratio[1] - 1),
        verdict="not reached" if unreached or not (common or is_reference) else verdict,
    )


def _verdict(difference: Interval | None) -> Verdict:
    if difference is None:
        return "one seed"
    return "better" if difference[1] < 0 else "worse" if difference[0] > 0 else "no difference"


def _count(entries: Iterable[LossAtGain]) -> Counts:
    verdicts = [entry.verdict for entry in entries]
    better, worse = verdicts.count("better"), verdicts.count("worse")
    tested = better + worse + verdicts.count("no difference")
    return Counts(tested, better, worse, BY_CHANCE * tested)


def _variant_runs(
    runs: Sequence[RunResult], curves: Mapping[int, Curve], name: str, reference: str
) -> VariantRuns:
    own = [run for run in runs if run.variant == name]
    return VariantRuns(
        runs=len(own),
        seeds=len({run.seed for run in own}),
        failed=sum(run.problem is not None for run in own),
        range=common_range(curves.values()),
        relative_seconds=_relative_seconds(runs, name, reference),
    )


def _relative_seconds(runs: Sequence[RunResult], name: str, reference: str) -> float | None:
    """Median training time over the reference's, on the machine on which most runs of both are."""
    times: dict[str | None, dict[str, list[float]]] = {}
    for run in runs:
        if run.variant in (name, reference) and run.problem is None and run.seconds:
            on_machine = times.setdefault(run.machine, {name: [], reference: []})
            on_machine[run.variant].append(run.seconds)
    both = [
        on_machine for on_machine in times.values() if on_machine[name] and on_machine[reference]
    ]
    if not both:
        return None
    most = max(both, key=lambda on_machine: len(on_machine[name]))
    return median(most[name]) / median(most[reference])


def _recommend(at: AtGain | None, variants: Mapping[str, VariantFacts]) -> dict[str, Choice | None]:
    """For each of ``CHOICES`` the best variant that it allows, None where none is better."""
    losses = {} if at is None else {name: entry["mean"] for name, entry in at.variants.items()}
    better = [name for name, entry in losses.items() if entry.verdict == "better"]
    unreplayed = [name for name in better if not variants[name].trained_on_old]
    textless = [name for name in unreplayed if not variants[name].reads_old]
    allowed = dict(zip(CHOICES, (textless, unreplayed, better), strict=True))
    return {choice: _best(at, names) if at else None for choice, names in allowed.items()}


def _best(at: AtGain, names: Sequence[str]) -> Choice | None:
    """The one of ``names``, all better than the reference, that is better by most."""
    if not names:
        return None
    best = min(names, key=lambda name: at.variants[name]["mean"].difference or 0.0)
    entry = at.variants[best]["mean"]
    assert entry.learning_rate is not None
    assert entry.loss is not None
    return Choice(
        variant=best,
        learning_rate=entry.learning_rate,
        loss=entry.loss,
        relative=entry.relative,
        worst=at.variants[best]["worst"].verdict,
        alike=[
            name
            for name in names
            if name != best and not _loses_more(at.variants[name]["mean"], entry)
        ],
    )


def _loses_more(entry: LossAtGain, best: LossAtGain) -> bool:
    """Whether ``entry`` loses more than ``best`` beyond noise, paired by seed."""
    of_best = {each.seed: each.loss for each in best.by_seed}
    interval = t_interval(
        [each.loss - of_best[each.seed] for each in entry.by_seed if each.seed in of_best]
    )
    return interval is not None and interval[0] > 0


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Student's t-interval of the mean of independent ``values``; None of fewer than two."""
    if len(values) < 2:
        return None
    half = _t(len(values), level) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def ratio_interval(
    above: Sequence[float], below: Sequence[float], level: float = LEVEL
) -> Interval | None:
    """Interval of mean(above) / mean(below), pair by pair; None where it has no bounds.

    Fieller, Some Problems in Interval Estimation (1954): all ratios R for which the t-interval of
    above − R · below holds 0. So it holds 1 exactly if that of the difference holds 0.
    """
    count = len(above)
    if count < 2:
        return None
    a, b = fmean(above), fmean(below)
    t = _t(count, level)
    deviations = [(x - a, y - b) for x, y in zip(above, below, strict=True)]
    scale = t * t / (count * (count - 1))
    aa, ab, bb = (
        scale * sum(pair[i] * pair[j] for pair in deviations) for i, j in ((0, 0), (0, 1), (1, 1))
    )
    # (a − R b)² ≤ aa − 2 R ab + R² bb
    square, half, constant = b * b - bb, a * b - ab, a * a - aa
    if square <= 0:
        return None
    root = math.sqrt(max(0.0, half * half - square * constant))  # rounding: not below
    return (half - root) / square, (half + root) / square


def _t(count: int, level: float) -> float:
    return students_t((1 + level) / 2, count - 1)
