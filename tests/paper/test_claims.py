"""Each claim of the paper, where it holds, where one figure refutes it, where nothing is known."""

from dataclasses import replace

import pytest
from made_paper import make_paper

from freezetrain.paper.claims import paper_claims
from freezetrain.paper.results import Claim, Overlaps, PaperResults

CLAIMS = ["core", "bottom", "weight", "directions", "dimensions", "selectivity", "stability"]


@pytest.fixture
def results() -> PaperResults:
    return make_paper(layers=2, ratios=(0.01, 0.05))


def claims(results: PaperResults) -> dict[str, Claim]:
    return dict(zip(CLAIMS, paper_claims(results), strict=True))


def with_rise(effect, code: str, rise: float):
    languages = {**effect.languages, code: replace(effect.languages[code], rise=rise)}
    return replace(effect, languages=languages)


def test_all_hold_on_a_model_that_shows_them(results):
    holds = {name: claim.holds for name, claim in claims(results).items()}
    assert holds == dict.fromkeys(CLAIMS, True)


def test_what_was_not_looked_at_cannot_be_told(results):
    results.ablation = results.dimensions = results.selectivity = None
    results.weights, results.overlap = {"zero": None}, Overlaps()
    assert {claim.holds for claim in paper_claims(results)} == {None}


@pytest.mark.parametrize("kind", ["random", "bottom"])
def test_one_language_at_one_ratio_refutes_the_core(results, kind):
    figures = results.ablation.figures
    name = results.removed[0.05][kind].regions[-1]  # a single draw of several
    worse = figures["top 5%"]["ja"].nll + 1
    figures[name]["ja"] = replace(figures[name]["ja"], nll=worse)
    core = claims(results)["core"]
    assert core.holds is False
    at_first, at_second = core.seen.split(". at 5%")
    assert "in 4 of 4 languages" in at_first
    assert "in 3 of 4 languages" in at_second


def test_without_random_regions_the_core_cannot_be_told(results):
    effects = [effect for effect in results.ablation.summary if effect.kind != "random"]
    results.ablation = replace(results.ablation, summary=effects)
    assert claims(results)["core"].holds is None
    assert claims(results)["bottom"].holds is True


@pytest.mark.parametrize(("share", "holds"), [(0.009, True), (0.011, False), (-0.011, False)])
def test_the_lowest_scores_may_change_a_hundredth_of_the_loss(results, share, holds):
    rise = share * results.ablation.figures["nothing"]["es"].nll_per_byte
    bottom = results.removed[0.05]["bottom"]
    place = results.ablation.summary.index(bottom)
    results.ablation.summary[place] = with_rise(bottom, "es", rise)
    claim = claims(results)["bottom"]
    assert claim.holds is holds
    assert f"{100 * share:+.2f}% at 5% (Spanish)".replace("-", "−") in claim.seen


def test_a_weight_must_break_a_language_and_be_worse_than_a_random_one(results):
    for name, changed in results.weights.items():
        perplexity = {code: 1.9 * was for code, was in changed.before.items()}
        weights = [replace(damage, perplexity=perplexity) for damage in changed.weights]
        results.weights[name] = replace(changed, weights=weights)
    assert claims(results)["weight"].holds is False
    scaled = results.weights["scale"]
    worst, *others = scaled.weights
    past_range = replace(worst, perplexity={**worst.perplexity, "zh": None})
    results.weights["scale"] = broken = replace(scaled, weights=[past_range, *others])
    claim = claims(results)["weight"]
    assert claim.holds is True
    assert f"multiplied by 4, the most harmful of 10: {worst.what}" in claim.seen
    assert "perplexity of Chinese" in claim.seen
    assert "→ ∞" in claim.seen
    results.weights["scale"] = replace(broken, random=broken.weights)
    assert claims(results)["weight"].holds is False


def test_whole_dimensions_are_no_single_weights(results):
    for name, changed in results.weights.items():
        *others, last = changed.weights
        weights = [*others, replace(last, entries=900)]
        results.weights[name] = replace(changed, weights=weights)
    assert claims(results)["weight"].holds is None


@pytest.mark.parametrize(
    ("direction", "kind"), [("rows", "mlp.down_proj"), ("columns", "mlp.up_proj")]
)
def test_a_kind_that_gathers_on_the_other_direction_is_named(results, direction, kind):
    for by_kind in results.dimensions.regions["core"].shares(direction).values():
        by_kind[kind] = 0.001
    claim = claims(results)["directions"]
    assert claim.holds is False
    assert claim.seen.startswith(f"6 of 7 kinds of matrices (not: {kind})")


def test_as_even_as_at_random_is_not_gathered(results):
    results.dimensions.even["columns"] = 0.9
    assert claims(results)["directions"].seen.startswith("2 of 7 kinds")
    results.dimensions.even["rows"] = 0.9
    assert claims(results)["directions"].seen.startswith("0 of 7 kinds")


def test_the_fullest_must_hurt_more_than_every_random_draw(results):
    draws = results.dimensions.ablated.random
    draws[1] = with_rise(draws[1], "ja", 9.0)
    claim = claims(results)["dimensions"]
    assert claim.holds is False
    assert "in 3 of 4 languages" in claim.seen


def test_one_region_that_hurts_another_language_most_refutes(results):
    dominance = replace(results.selectivity.dominance, rows=3)
    results.selectivity = replace(results.selectivity, dominance=dominance)
    claim = claims(results)["selectivity"]
    assert claim.holds is False
    assert claim.seen.startswith("3 of 4 regions")


@pytest.mark.parametrize("where", ["halves", "samples"])
def test_regions_with_little_in_common_are_not_stable(results, where):
    if where == "halves":
        results.overlap.halves.jaccard[2] = 0.49
    else:
        results.overlap.samples.jaccard[0][-1] = 0.49
    claim = claims(results)["stability"]
    assert claim.holds is False
    assert "0.49" in claim.seen
