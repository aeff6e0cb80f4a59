"""Variants at equal gain, against curves whose formula is known and effects that were planted."""

import json
import math
from dataclasses import replace
from statistics import fmean, stdev

import numpy as np
import pytest
from made_comparison import RATES, SEEDS, failed_run, grid, made_run

from freezetrain.compare.curves import language_losses
from freezetrain.compare.frontier import compare_variants, ratio_interval, t_interval
from freezetrain.compare.results import Counts, RunResult, Unreached, VariantFacts
from freezetrain.errors import UserError


def at(comparison, gain=None):
    """Variant → measure → values at a gain, the main one if None."""
    gain = comparison.gain if gain is None else gain
    (there,) = (there for there in comparison.at if there.gain == pytest.approx(gain))
    return there.variants


def test_exponential_curves_are_read_exactly_at_every_gain():
    of_seed = {0: -0.1, 1: 0.05, 2: 0.2}.__getitem__
    runs = grid("plain", of_seed=of_seed) + grid("half", a=0.01, of_seed=of_seed)
    found = compare_variants(runs)
    assert compare_variants(runs[::-1]).main.variants == found.main.variants  # in any order
    # Means 0.41, 0.61, 0.81, drawn in to what every seed reaches, 0.42 to 0.80.
    assert found.gains == pytest.approx([0.42, 0.61, 0.80])
    assert found.gain == pytest.approx(0.61)
    assert found.range == pytest.approx([0.42, 0.80])
    for gain in found.gains:
        for name, a in (("plain", 0.02), ("half", 0.01)):
            losses = [a * math.exp(3 * gain + of_seed(seed)) for seed in SEEDS]
            for measure, factor in (("mean", 1), ("worst", 2)):
                entry = at(found, gain)[name][measure]
                assert entry.loss == pytest.approx(factor * fmean(losses))
                assert [one.loss for one in entry.by_seed] == pytest.approx(
                    [factor * loss for loss in losses]
                )
                half = 4.302653 * factor * stdev(losses) / math.sqrt(3)
                low, high = factor * fmean(losses) - half, factor * fmean(losses) + half
                assert entry.interval == pytest.approx([low, high], rel=1e-6)
        entry = at(found, gain)["half"]["mean"]
        assert entry.relative == pytest.approx(-0.5)
        assert entry.relative_interval == pytest.approx([-0.5, -0.5])
        assert entry.verdict == "better"
        assert at(found, gain)["plain"]["mean"].verdict == "reference"
    # A seed shifts the gains alone: seed 1 has the gain at 1e-3, the others a little to its sides.
    assert at(found)["plain"]["mean"].learning_rate == pytest.approx(1e-3, rel=1e-3)


def test_the_difference_is_paired_by_seed():
    """Seeds differ by two thirds, the variant from plain by a tenth in each."""
    of_seed = {0: -0.2, 1: 0.0, 2: 0.3}.__getitem__
    runs = grid("plain", of_seed=of_seed) + grid("less", a=0.018, of_seed=of_seed)
    table = at(compare_variants(runs))
    entry = table["less"]["mean"]
    assert table["plain"]["mean"].interval[0] < entry.loss  # unpaired, nothing is seen
    assert entry.verdict == "better"
    by_hand = [-0.002 * math.exp(3 * 0.61 + of_seed(seed)) for seed in SEEDS]
    assert entry.difference == pytest.approx(fmean(by_hand))
    low, high = entry.difference_interval
    assert high - low == pytest.approx(2 * 4.302653 * stdev(by_hand) / math.sqrt(3), rel=1e-6)
    assert entry.relative_interval == pytest.approx([-0.1, -0.1])


@pytest.mark.parametrize("effect", [0.0, -0.3])
def test_better_by_chance_as_seldom_as_said_and_a_planted_effect_nearly_always(effect):
    draw = np.random.default_rng(1)
    shared = draw.normal(0, 0.3, size=5)
    counts = {"better": 0, "worse": 0, "no difference": 0}
    for _ in range(100):
        options = {"noise": lambda: draw.normal(0, 0.05), "seeds": range(5)}
        runs = grid("plain", of_seed=shared.__getitem__, **options)
        runs += grid("other", a=0.02 * math.exp(effect), of_seed=shared.__getitem__, **options)
        counts[at(compare_variants(runs))["other"]["mean"].verdict] += 1
    if effect:
        assert counts["better"] > 90
    else:
        assert counts["better"] <= 7  # 2.5% of 100 is 2.5; more than 7 by chance: 0.4%
        assert counts["worse"] <= 7


def test_failed_runs_are_named_and_left_out():
    runs = grid("plain") + grid("other", a=0.01)
    lost = failed_run("other", RATES[1], 1)
    runs = [
        lost if (r.variant, r.learning_rate, r.seed) == ("other", RATES[1], 1) else r for r in runs
    ]
    runs += [made_run("nan", 1e-3, 0, math.nan, 0.1)]
    found = compare_variants(runs)
    assert [(one.variant, one.seed) for one in found.failed] == [("other", 1), ("nan", 0)]
    assert found.failed[0].failed == "loss became NaN at step 2"
    assert "gain" in found.failed[1].failed
    of_other = found.variants["other"]
    assert (of_other.runs, of_other.seeds, of_other.failed) == (9, 3, 1)
    assert of_other.relative_seconds == 1.0
    entry = at(found)["other"]["mean"]  # its curve goes on from the lowest to the highest rate
    assert entry.verdict == "better"
    assert entry.relative == pytest.approx(-0.5)
    assert at(found)["nan"]["mean"].verdict == "not reached"
    json.dumps(found.to_dict(), allow_nan=False)


def test_what_is_not_reached_is_said_seed_by_seed():
    """Seed 0 gains too little; the other two are told, without a verdict."""
    runs = grid("plain")
    runs += grid("weak", a=0.01, gains=(0.2, 0.4, 0.605))
    runs += grid("strong", gains=(0.7, 0.8, 0.9))
    found = compare_variants(runs)
    weak, strong = at(found)["weak"]["mean"], at(found)["strong"]["mean"]
    assert weak.verdict == strong.verdict == "not reached"
    assert weak.unreached == [Unreached(0, pytest.approx((0.2, 0.605)))]
    assert [one.seed for one in weak.by_seed] == [1, 2]
    assert weak.relative == pytest.approx(-0.5)
    assert [one.seed for one in strong.unreached] == [0, 1, 2]
    assert strong.loss is strong.relative is strong.learning_rate is None
    assert at(found, 0.80)["strong"]["mean"].verdict == "no difference"
    assert found.at[1].comparisons["mean"].tested == 0


def test_fewer_seeds_are_compared_with_the_same_seeds_of_the_reference():
    of_seed = {0: -0.3, 1: 0.0, 2: 0.4}.__getitem__
    runs = grid("plain", of_seed=of_seed)
    runs += grid("one", a=0.01, seeds=[2], of_seed=of_seed)
    runs += grid("two", a=0.01, seeds=[0, 2], of_seed=of_seed)
    table = at(compare_variants(runs))
    one, two = table["one"]["mean"], table["two"]["mean"]
    assert one.verdict == "one seed"
    assert one.relative == pytest.approx(-0.5)
    assert two.relative == pytest.approx(-0.5)
    assert one.difference == pytest.approx(-0.01 * math.exp(3 * 0.61 + 0.4))
    assert one.interval is one.difference_interval is one.relative_interval is None
    of_two = [-0.01 * math.exp(3 * 0.61 + of_seed(seed)) for seed in (0, 2)]
    half = 12.706205 * stdev(of_two) / math.sqrt(2)
    assert two.difference_interval == pytest.approx(
        [fmean(of_two) - half, fmean(of_two) + half], rel=1e-6
    )


def test_the_count_of_comparisons_and_what_chance_gives():
    runs = grid("plain")
    for place in range(8):
        runs += grid(f"v{place}", a=0.02 * (0.5 if place < 3 else 2.0))
    runs += grid("single", seeds=[0])
    (counted,) = (one.comparisons["mean"] for one in compare_variants(runs).at[1:2])
    assert counted == Counts(8, better=3, worse=5, better_by_chance=pytest.approx(0.2))


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (grid("plain", rates=[1e-3], gains=[0.5]), "one learning rate"),
        (grid("plain", rates=[1e-3], gains=[0.5], seeds=[0]), "one learning rate"),
        ([failed_run("plain", 1e-3, 0)], "no run of 'plain' gave a result"),
        (
            grid("plain", seeds=[0], gains=(0.1, 0.2, 0.3))
            + grid("plain", seeds=[1], gains=(0.4, 0.5, 0.6)),
            "no gain in common",
        ),
    ],
)
def test_no_gain_in_common_is_no_error(runs, said):
    found = compare_variants([*runs, *grid("other")], gain=0.3)
    assert (found.gain, found.gains, found.at) == (None, [], [])
    assert said in found.why_none


def test_a_given_gain_is_the_main_one():
    found = compare_variants(grid("plain") + grid("other"), gain=0.7)
    assert found.gain == 0.7
    assert found.gains == pytest.approx([0.42, 0.61, 0.7, 0.8])
    with pytest.raises(UserError, match=r"0\.42 to 0\.8 nats per byte, got 0\.81; choose"):
        compare_variants(grid("plain"), gain=0.81)
    with pytest.raises(UserError, match=r"reference 'plian' \(did you mean 'plain'\?\), got"):
        compare_variants(grid("plain"), reference="plian")


def test_a_ratio_has_an_interval_that_agrees_with_the_difference():
    """Fieller's interval against its definition: a search for all ratios that are not rejected."""
    draw = np.random.default_rng(3)
    for _ in range(6):
        below = draw.normal(1.0, 0.1, size=4)
        above = below * draw.normal(0.9, 0.08, size=4)
        low, high = ratio_interval(list(above), list(below))
        ratios = np.linspace(low - 0.5, high + 0.5, 1001)
        held = []
        for ratio in ratios:
            ends = t_interval(list(above - ratio * below))
            held.append(ends[0] <= 0 <= ends[1])
        kept = ratios[held]
        assert (kept.min(), kept.max()) == pytest.approx((low, high), abs=2e-3)
        ends = t_interval(list(above - below))
        assert (ends[0] <= 0 <= ends[1]) == (low <= 1 <= high)
    assert ratio_interval([1.0], [1.0]) is None
    assert ratio_interval([1.0, 1.1], [-1.0, 1.5]) is None


def facts(reads_old=False, trained_on_old=0.0):
    return VariantFacts(None, None, {}, trained_on_old, reads_old)


def test_recommended_is_the_best_better_one_of_what_a_user_may_have():
    draw = np.random.default_rng(0)
    noise = {"noise": lambda: draw.normal(0, 0.01)}
    runs = grid("plain", **noise)
    runs += grid("random", a=0.0199, **noise) + grid("vocabulary", a=0.015, **noise)
    runs += grid("columns", a=0.010, **noise) + grid("replay", a=0.005, **noise)
    runs += grid("both", a=0.00501, **noise)
    runs += grid("tiny", a=0.001, seeds=[0])  # one seed recommends nothing
    runs = [replace(run, worst=9 * run.worst) if run.variant == "columns" else run for run in runs]
    variants = dict.fromkeys(("plain", "random", "vocabulary", "tiny"), facts())
    variants |= {"columns": facts(True), "replay": facts(False, 0.05), "both": facts(True, 0.05)}
    found = compare_variants(runs, variants=variants)
    chosen = found.recommendation
    assert chosen["no_old_texts"].variant == "vocabulary"
    assert chosen["no_old_texts"].learning_rate == pytest.approx(1e-3, rel=0.2)
    assert chosen["no_old_texts"].relative == pytest.approx(-0.25, abs=0.05)
    assert (chosen["no_old_texts"].worst, chosen["no_old_texts"].alike) == ("better", [])
    assert (chosen["no_replay"].variant, chosen["no_replay"].worst) == ("columns", "worse")
    assert {chosen["any"].variant, *chosen["any"].alike} == {"replay", "both"}
    nothing = compare_variants(grid("plain") + grid("a"), variants={"a": facts()})
    assert set(nothing.recommendation.values()) == {None}


def test_each_language_is_read_off_its_own_curve():
    runs = [*grid("plain"), *grid("weak", gains=(0.1, 0.2, 0.3)), failed_run("plain", 5e-3, 0)]
    runs = [
        run
        if run.failed
        else replace(run, languages={"de": math.exp(5 * run.gain), "en": -run.gain})
        for run in runs
    ]
    assert language_losses(runs, 0.61) == {
        "plain": {"de": pytest.approx(math.exp(5 * 0.61)), "en": pytest.approx(-0.61)},
        "weak": {"de": None, "en": None},
    }


def test_a_rate_past_the_one_that_gains_most_is_not_what_others_are_compared_at():
    """Plain turns back at its highest rate: the main gain is that of the rate before its best."""
    runs = grid("plain", rates=(3e-4, 1e-3, 2e-3, 4e-3), gains=(0.4, 0.6, 0.8, 0.7))
    assert compare_variants(runs).gain == pytest.approx(0.61)


def test_the_best_is_the_one_that_is_better_by_most_also_with_other_seeds():
    """Seeds 3 and 4 lose more with every variant, which is no fault of those run with them."""
    of_seed = {0: 0.0, 1: 0.05, 2: 0.1, 3: 1.5, 4: 1.6}.__getitem__
    runs = grid("plain", seeds=range(5), of_seed=of_seed)
    runs += grid("half", a=0.01, seeds=range(5), of_seed=of_seed)
    runs += grid("less", a=0.015, seeds=range(3), of_seed=of_seed)
    found = compare_variants(runs, variants=dict.fromkeys(("plain", "half", "less"), facts()))
    losses = {name: entry["mean"].loss for name, entry in at(found).items()}
    assert losses["less"] < losses["half"]
    assert found.recommendation["any"].variant == "half"


def test_a_run_comes_back_from_json():
    for run in (made_run("plain", 1e-3, 0, 0.5, 0.1), failed_run("plain", 1e-3, 1)):
        back = RunResult.from_dict(json.loads(json.dumps(run.to_dict())))
        assert replace(back, languages=back.languages or None) == run


def test_times_are_compared_on_one_machine():
    runs = grid("plain", machine="GPU") + grid("other", machine="GPU", seconds=20.0)
    runs += grid("plain", seeds=(7,), machine="CPU", seconds=900.0)
    found = compare_variants(runs).variants
    assert found["other"].relative_seconds == pytest.approx(2.0)
    assert found["plain"].relative_seconds == 1.0
