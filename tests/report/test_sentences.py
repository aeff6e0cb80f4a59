from typing import Any

import pytest

from freezetrain.quickstart import observations as sentences


def small(figures: Any, core: list[float], random: list[float]) -> dict[str, Any]:
    return {
        "languages": ["en", "zh"],
        "ablation": {
            "nothing": {"en": {"bits_per_byte": 1.0}, "zh": {"bits_per_byte": 2.0}},
            "core": {"en": {"bits_per_byte": core[0]}, "zh": {"bits_per_byte": core[1]}},
            "random": {"en": {"bits_per_byte": random[0]}, "zh": {"bits_per_byte": random[1]}},
        },
    } | figures


def test_ablation_says_mean_and_range_whatever_they_are() -> None:
    said = sentences.ablation_seen(small({}, core=[1.5, 2.1], random=[0.9, 2.002]))
    assert "+0.300 with core zeroed (+0.100 to +0.500)" in said
    assert "−0.049 with random zeroed (−0.100 to +0.0020)" in said


def run(deltas: dict[str, float], gain: float | None) -> dict[str, Any]:
    worst = max(deltas, key=deltas.__getitem__)
    return {
        "evaluations": [
            {
                "forgetting": {
                    "languages": {c: {"delta_nll_per_byte": d} for c, d in deltas.items()},
                    "mean": sum(deltas.values()) / len(deltas),
                    "worst": {"language": worst, "delta_nll_per_byte": deltas[worst]},
                    "target_gain": gain,
                }
            }
        ]
    }


def test_forgetting_counts_the_languages_of_both_runs() -> None:
    frozen = run({"en": 0.1, "de": 0.3, "fr": 0.0, "xx": 0.2}, 0.5)
    plain = run({"en": 0.2, "de": 0.1, "fr": 0.1, "xx": 0.2}, -0.25)
    said = sentences.forgetting_seen({"runs": {"core frozen": frozen, "plain": plain}})
    assert "“core frozen” the mean loss of the held-out languages changed by +0.150" in said
    assert "that of the target by −0.500" in said
    assert "that of the target by +0.250" in said
    assert "“core frozen” for 2 of 4 held-out languages, in the run “plain” for 1." in said


def test_course_names_the_worst_language() -> None:
    said = sentences.course_seen({"runs": {"plain": run({"en": -0.2, "de": -0.1}, None)}})
    assert "German (−0.100) in the run “plain”" in said


def test_location_says_the_mean_the_fullest_and_the_baseline() -> None:
    region = {
        "rows": {"0": {"q": 0.2, "o": 0.6}, "1": {"q": 0.1, "o": None}},
        "columns": {"0": {"q": 0.5}, "1": {}},
        "even": {"rows": 0.07, "columns": 0.061},
    }
    said = sentences.location_seen({"region": region})
    assert "of rows hold 30% of" in said
    assert "most in o (60%); of a random region as large, 7%" in said
    assert "of columns hold 50% of" in said


@pytest.mark.parametrize(("moved", "said"), [(0, "0 differ"), (17_681, "17,681 differ")])
def test_verify_says_how_many_moved(moved: int, said: str) -> None:
    runs = {
        "a": {"verify": {"checked": 17_695, "moved": moved, "changed_elsewhere": 12}},
        "b": {"verify": None},
    }
    (line,) = sentences.verify_seen({"runs": runs})
    assert f"of 17,695 weights of the region, {said} from the base; 12 other" in line


def test_repeats_are_said_where_there_are_some(make: Any) -> None:
    results = make(["en", "zh"])
    assert "repeated" not in sentences.introduction(results)
    for run in results["runs"].values():
        run["repeats"] = [run, run]
    said = sentences.introduction(results)
    assert "Each run was repeated with 2 other data orders; what follows shows the first" in said
