"""Each claim of the paper, where it holds, where one figure refutes it, where nothing is known."""

from typing import Any

import pytest
from made_paper import make_paper

from freezetrain.paper.claims import paper_claims

CLAIMS = ["core", "bottom", "weight", "directions", "dimensions", "selectivity", "stability"]
LANGUAGES = ["en", "es", "ja", "zh"]


@pytest.fixture
def results() -> dict[str, Any]:
    return make_paper(LANGUAGES, layers=2, ratios=(0.01, 0.05))


def claims(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict(zip(CLAIMS, paper_claims(results), strict=True))


def summary(results: dict[str, Any], kind: str, ratio: float) -> dict[str, Any]:
    (found,) = (
        one
        for one in results["ablation"]["summary"]
        if (one["kind"], one["ratio"]) == (kind, ratio)
    )
    return found


def test_all_hold_on_a_model_that_shows_them(results: dict[str, Any]) -> None:
    assert {name: one["holds"] for name, one in claims(results).items()} == dict.fromkeys(
        CLAIMS, True
    )
    for one in claims(results).values():
        assert one["seen"].endswith(".")
        assert one["paper"].endswith(".")


def test_what_was_not_looked_at_cannot_be_told(results: dict[str, Any]) -> None:
    bare = {key: results[key] for key in ("model", "languages", "settings", "seconds")}
    parts = dict.fromkeys(("ablation", "weights", "dimensions", "selectivity", "overlap"))
    for nothing in (bare, {**bare, **parts}):
        assert {one["holds"] for one in paper_claims(nothing)} == {None}


@pytest.mark.parametrize("kind", ["random", "bottom"])
def test_one_language_at_one_ratio_refutes_the_core(results: dict[str, Any], kind: str) -> None:
    figures = results["ablation"]["figures"]
    one = summary(results, kind, 0.05)["regions"][-1]  # a single draw of several
    figures[one]["ja"] |= {"nll": figures["top 5%"]["ja"]["nll"] + 1}
    core = claims(results)["core"]
    assert core["holds"] is False
    at_first, at_second = core["seen"].split("; ")
    assert "more than each of them in 4 of 4 languages" in at_first
    assert "at 5%" in at_second
    assert "more than each of them in 3 of 4 languages" in at_second


def test_without_random_regions_the_core_cannot_be_told(results: dict[str, Any]) -> None:
    results["ablation"]["summary"] = [
        one for one in results["ablation"]["summary"] if one["kind"] != "random"
    ]
    assert claims(results)["core"]["holds"] is None
    assert claims(results)["bottom"]["holds"] is True


@pytest.mark.parametrize(("share", "holds"), [(0.009, True), (0.011, False), (-0.011, False)])
def test_the_lowest_scores_may_change_a_hundredth_of_the_loss(
    results: dict[str, Any], share: float, holds: bool
) -> None:
    before = results["ablation"]["figures"]["nothing"]["es"]
    rise = share * before["nll"] / before["bytes"]
    summary(results, "bottom", 0.05)["languages"]["es"]["rise"] = rise
    bottom = claims(results)["bottom"]
    assert bottom["holds"] is holds
    assert f"{100 * share:.2g}% at 5% (Spanish)".replace("-", "−") in bottom["seen"]


def test_a_weight_that_breaks_no_language_does_not_hold(results: dict[str, Any]) -> None:
    for found in results["weights"].values():
        for one in found["weights"]:
            one["perplexity"] = {code: 1.9 * was for code, was in found["before"].items()}
    assert claims(results)["weight"]["holds"] is False
    worst = results["weights"]["scale"]["weights"][0]
    worst["perplexity"]["zh"] = None  # past the float range
    weight = claims(results)["weight"]
    assert weight["holds"] is True
    assert " multiplied by 4: the most harmful of 10, " in weight["seen"]
    assert f"{worst['name']}[{worst['index'][0]}]" in weight["seen"]
    assert "of Chinese from" in weight["seen"]
    assert "to ∞" in weight["seen"]


def test_a_weight_no_worse_than_a_random_one_does_not_hold(results: dict[str, Any]) -> None:
    for found in results["weights"].values():
        found["random"] = found["weights"]
    assert claims(results)["weight"]["holds"] is False


def test_whole_dimensions_are_no_single_weights(results: dict[str, Any]) -> None:
    for found in results["weights"].values():
        found["weights"][-1]["entries"] = 900
    assert claims(results)["weight"]["holds"] is None


@pytest.mark.parametrize(
    ("direction", "kind"), [("rows", "mlp.down_proj"), ("columns", "mlp.up_proj")]
)
def test_a_kind_that_gathers_on_the_other_direction_is_named(
    results: dict[str, Any], direction: str, kind: str
) -> None:
    for layer in results["dimensions"]["regions"]["core"][direction].values():
        layer[kind] = 0.001
    found = claims(results)["directions"]
    assert found["holds"] is False
    assert found["seen"].startswith(f"So in 6 of 7 kinds of matrices, not in {kind}.")


def test_as_even_as_at_random_is_not_gathered(results: dict[str, Any]) -> None:
    results["dimensions"]["even"]["columns"] = 0.9
    assert claims(results)["directions"]["seen"].startswith("So in 2 of 7 kinds of matrices, not")
    results["dimensions"]["even"]["rows"] = 0.9
    assert claims(results)["directions"]["seen"].startswith("So in 0 of 7 kinds of matrices. Mean")


def test_the_fullest_must_hurt_more_than_every_random_draw(results: dict[str, Any]) -> None:
    ablated = results["dimensions"]["ablated"]
    ablated["random"][1]["languages"]["ja"]["rise"] = 9.0
    found = claims(results)["dimensions"]
    assert found["holds"] is False
    assert "more than any of them in 3 of 4 languages" in found["seen"]


def test_one_region_that_hurts_another_language_most_refutes(results: dict[str, Any]) -> None:
    results["selectivity"]["dominance"] |= {"rows": 3}
    assert claims(results)["selectivity"]["holds"] is False
    assert claims(results)["selectivity"]["seen"].startswith("The region of 3 of 4 languages")


@pytest.mark.parametrize("where", ["halves", "samples"])
def test_regions_with_little_in_common_are_not_stable(results: dict[str, Any], where: str) -> None:
    if where == "halves":
        results["overlap"]["halves"]["jaccard"][2] = 0.49
    else:
        results["overlap"]["samples"]["jaccard"][0][-1] = 0.49
    stability = claims(results)["stability"]
    assert stability["holds"] is False
    assert "0.49" in stability["seen"]
