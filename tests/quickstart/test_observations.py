"""The claims that a quickstart checks: at equal gain, seed by seed, bit by bit."""

from dataclasses import replace

import pytest
from made_quickstart import adaptation

from freezetrain.evaluation import Figures
from freezetrain.quickstart.observations import Observation, Variant, observe

PLAIN = ((0.0, 0.0), (1.0, 0.5))


def figures(**nll: float) -> dict[str, Figures]:
    return {language: Figures(value, 10, 10) for language, value in nll.items()}


def observed(frozen, plain, core=None, moved=0) -> list[Observation]:
    """``frozen`` and ``plain``: of each seed the (gain, loss) of each evaluation."""
    ablation = {
        "nothing": figures(en=10.0, zh=20.0),
        "core": core or figures(en=15.0, zh=22.0),
        "random": figures(en=11.0, zh=21.0),
        "bottom": figures(en=10.0, zh=20.0),
    }
    variants = [
        Variant("plain", [adaptation("plain", *points, moved=8) for points in plain]),
        Variant("core frozen", [adaptation("core", *points, moved=moved) for points in frozen]),
    ]
    return observe(ablation, variants)


def test_less_forgetting_at_equal_gain_holds_although_less_was_learnt():
    seen = observed([((0.0, 0.0), (0.8, 0.2))], [PLAIN])[-1]
    assert seen.holds
    assert "at a gain of 0.800" in seen.seen
    assert "+0.2000, +0.4000 in plain training; by seed -50.0%" in seen.seen


def test_less_forgetting_only_by_learning_less_does_not_hold():
    seen = observed([((0.0, 0.0), (0.4, 0.201))], [PLAIN])[-1]
    assert not seen.holds
    assert seen.seen.endswith("by seed +0.5%")


def test_a_claim_must_hold_for_every_seed():
    less, more = ((0.0, 0.0), (1.0, 0.4)), ((0.0, 0.0), (1.0, 0.6))
    both = observed([less, less], [PLAIN, PLAIN])[-1]
    assert both.holds
    assert both.seen.endswith("by seed -20.0%, -20.0%")
    only_one = observed([less, more], [PLAIN, PLAIN])[-1]
    assert not only_one.holds
    assert only_one.seen.endswith("by seed -20.0%, +20.0%")


def test_nothing_learnt_does_not_hold():
    seen = observed([((0.0, 0.0), (-0.1, 0.2))], [PLAIN])[-1]
    assert (seen.holds, seen.seen) == (False, "the target was not learnt")


def test_nothing_forgotten_is_not_less_forgotten():
    plain, frozen = ((0.0, 0.0), (1.0, -0.2)), ((0.0, 0.0), (1.0, -0.1))
    for runs in ((frozen, plain), (plain, frozen)):
        seen = observed([runs[0]], [runs[1]])[-1]
        assert not seen.holds
        assert seen.seen.endswith("nothing to reduce")


def test_one_language_without_harm_is_enough_to_refute():
    observations = observed([PLAIN], [PLAIN], core=figures(en=15.0, zh=20.5))
    assert not observations[0].holds
    assert "mean rise +0.275 against +0.100 nats per byte" in observations[0].seen
    assert "higher in 1 of 2 languages" in observations[0].seen
    assert observations[1].holds


def test_an_entry_that_moved_is_said():
    observations = observed([PLAIN], [PLAIN], moved=3)
    assert not observations[2].holds
    assert observations[2].seen.startswith("moved: 3 of 8 (runs: 1)")


def test_a_run_as_results_hold_it():
    first, second = (adaptation("core", *PLAIN) for _ in range(2))
    results = Variant("core frozen", [first, replace(second, seed=1, model=None)]).to_dict()
    assert results["model"] == "core/model"
    assert "model" not in results["repeats"][0]
    assert results["repeats"][0]["seed"] == 1
    assert results["evaluations"][1]["forgetting"]["target_gain"] == pytest.approx(1.0)
    assert results["verify"] == {"checked": 8, "moved": 0, "changed_elsewhere": 1000}
