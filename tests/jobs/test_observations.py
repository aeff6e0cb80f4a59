import pytest

from freezetrain.quickstart.observations import loss_at_gain, observe


def course(*points):
    return [{"forgetting": {"target_gain": gain, "mean": loss}} for gain, loss in points]


def test_loss_is_linear_between_evaluations():
    run = course((0.0, 0.0), (0.4, 0.1), (0.8, 0.5))
    assert loss_at_gain(run, 0.2) == pytest.approx(0.05)
    assert loss_at_gain(run, 0.7) == pytest.approx(0.4)
    assert loss_at_gain(run, 0.8) == pytest.approx(0.5)
    assert loss_at_gain(run, 0.9) is None


def test_a_run_that_falls_back_counts_when_it_first_reaches_the_gain():
    run = course((0.0, 0.0), (0.6, 0.2), (0.4, 0.9), (0.8, 1.0))
    assert loss_at_gain(run, 0.5) == pytest.approx(0.5 / 0.6 * 0.2)


def figures(**nll):
    return {language: {"nll": value, "tokens": 10} for language, value in nll.items()}


def run(evaluations, moved, repeats=()):
    verify = {"checked": 8, "moved": moved}
    return {
        "evaluations": evaluations,
        "verify": verify,
        "repeats": [run(repeat, moved) for repeat in repeats],
    }


def results(frozen, plain, core=None, moved=0, repeats=((), ())):
    return {
        "ablation": {
            "nothing": figures(en=10.0, zh=20.0),
            "core": core or figures(en=15.0, zh=22.0),
            "random": figures(en=11.0, zh=21.0),
            "bottom": figures(en=10.0, zh=20.0),
        },
        "runs": {
            "plain": run(plain, 8, repeats[1]),
            "core frozen": run(frozen, moved, repeats[0]),
        },
    }


def last(observations):
    return observations[-1]


PLAIN = course((0.0, 0.0), (1.0, 0.5))


def test_less_forgetting_at_equal_gain_holds_although_less_was_learnt():
    seen = last(observe(results(course((0.0, 0.0), (0.8, 0.2)), PLAIN)))
    assert seen["holds"]
    assert "at a gain of 0.800" in seen["seen"]
    assert "+0.2000 on average, +0.4000 in plain training; by seed -50.0%" in seen["seen"]


def test_less_forgetting_only_by_learning_less_does_not_hold():
    seen = last(observe(results(course((0.0, 0.0), (0.4, 0.2)), PLAIN)))
    assert not seen["holds"]
    assert seen["seen"].endswith("by seed +0.0%")


def test_a_claim_must_hold_for_every_seed():
    less, more = course((0.0, 0.0), (1.0, 0.4)), course((0.0, 0.0), (1.0, 0.6))
    both = last(observe(results(less, PLAIN, repeats=([less], [PLAIN]))))
    assert both["holds"]
    assert both["seen"].endswith("by seed -20.0%, -20.0%")
    one = last(observe(results(less, PLAIN, repeats=([more], [PLAIN]))))
    assert not one["holds"]
    assert "+0.5000 on average, +0.5000 in plain training" in one["seen"]
    assert one["seen"].endswith("by seed -20.0%, +20.0%")


def test_nothing_learnt_does_not_hold():
    seen = last(observe(results(course((0.0, 0.0), (-0.1, 0.2)), PLAIN)))
    assert (seen["holds"], seen["seen"]) == (False, "the target was not learnt")


def test_nothing_forgotten_is_not_less_forgotten():
    plain, frozen = course((0.0, 0.0), (1.0, -0.2)), course((0.0, 0.0), (1.0, -0.1))
    for runs in ((frozen, plain), (plain, frozen)):
        seen = last(observe(results(*runs)))
        assert not seen["holds"]
        assert seen["seen"].endswith("in plain training: there was none to reduce")


def test_one_language_without_harm_is_enough_to_refute():
    observations = observe(results(PLAIN, PLAIN, core=figures(en=15.0, zh=20.5)))
    assert not observations[0]["holds"]
    assert "higher in 1 of 2 languages" in observations[0]["seen"]
    assert observations[1]["holds"]


def test_an_entry_that_moved_is_said():
    observations = observe(results(PLAIN, PLAIN, moved=3))
    assert not observations[2]["holds"]
    assert observations[2]["seen"].startswith("3 of 8 moved in 1 runs")
