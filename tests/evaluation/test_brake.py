import math

import numpy as np
import pytest

from freezetrain.errors import UserError
from freezetrain.evaluation import DocumentSums, History
from freezetrain.evaluation.brake import Brake, Breach

BASE = {"zh": 4.0, "en": 2.0, "es": 1.0}  # nats per byte
TOKENS = {"zh": 2, "en": 4, "es": 5}  # bytes in a token


def documents(per_byte: float, language: str, scatter: float = 0.0) -> DocumentSums:
    """Six documents; ``scatter`` moves single ones and leaves their sum."""
    sizes = np.array([20, 40, 20, 60, 20, 40])
    moved = scatter * np.array([1, -1, 1, -1, 1, -1])
    return DocumentSums(
        nll=per_byte * sizes + moved,
        tokens=sizes // TOKENS[language],
        bytes=sizes,
        correct=np.zeros(6, dtype=np.int64),
    )


def history(*changes: dict[str, float], target: str | None = "zh", scatter: float = 0.0) -> History:
    """The base at step 0, then an evaluation with each of ``changes``, 10 steps apart."""
    found = History(target)
    found.add(0, {name: documents(value, name) for name, value in BASE.items()})
    for number, change in enumerate(changes, 1):
        now = {name: value + change.get(name, 0) for name, value in BASE.items()}
        found.add(10 * number, {n: documents(v, n, scatter) for n, v in now.items()})
    return found


def exceeded(brake: Brake, found: History) -> list[tuple[int, str]]:
    return [(breach.step, breach.name) for breach in brake.breaches(found.evaluations)]


def test_measures_are_shares_of_the_base_and_nats():
    # en: 0.1 of 2.0 = 5%; es: 0.1 of 1.0 = 10%; their mean 7.5%
    found = history({"en": 0.1, "es": 0.1, "zh": 3.0})
    evaluation = found.evaluations[1:]
    for measure, expected in {
        "relative": {"en": 0.05, "es": 0.10, "mean": 0.075, "worst": 0.10},
        "nats_per_byte": {"en": 0.1, "es": 0.1, "mean": 0.1, "worst": 0.1},
        "perplexity": {
            "en": math.exp(0.1 * 4) - 1,
            "es": math.exp(0.1 * 5) - 1,
            "mean": (math.exp(0.4) + math.exp(0.5)) / 2 - 1,
            "worst": math.exp(0.5) - 1,
        },
    }.items():
        for name, value in expected.items():
            (breach,) = Brake({name: value - 1e-9}, measure=measure).breaches(evaluation)
            assert breach == Breach(10, name, pytest.approx(value), value - 1e-9)
            assert Brake({name: value + 1e-9}, measure=measure).breaches(evaluation) == []


def test_a_perplexity_past_the_float_range_is_a_breach_and_json():
    found = history({"en": 1e4})
    brake = Brake({"en": 0.1}, measure="perplexity")
    (breach,) = brake.breaches(found.evaluations)
    assert breach.value == math.inf
    assert brake.to_dict(found.evaluations)["breaches"][0]["value"] is None


def test_noise_is_not_a_breach_where_it_is_told_not_to_be():
    brake = {"limits": {"en": 0.02, "worst": 0.5}}
    for scatter, surely in ((0.0, True), (30.0, False)):
        found = history({"en": 0.1}, scatter=scatter)
        low, high = found.last.forgetting.languages["en"].interval
        assert (low > 0.02 * BASE["en"]) == surely
        assert high >= 0.1 - 1e-12
        assert exceeded(Brake(**brake), found) == [(10, "en")]
        expected = [(10, "en")] if surely else []
        assert exceeded(Brake(**brake, beyond_noise=True), found) == expected
    # What is told is the loss, not the end of its interval.
    found = history({"en": 0.1}, scatter=0.5)
    (breach,) = Brake({"en": 0.02}, beyond_noise=True).breaches(found.evaluations)
    assert breach.value == pytest.approx(0.05)


@pytest.mark.parametrize("measure", ["relative", "perplexity", "nats_per_byte"])
def test_beyond_noise_limits_lie_at_the_interval_in_each_measure(measure):
    found = history({"en": 0.1}, scatter=1.0)
    low = found.last.forgetting.languages["en"].interval[0]
    assert 0 < low < 0.09
    end = {"relative": low / 2.0, "perplexity": math.exp(4 * low) - 1, "nats_per_byte": low}
    for name in ("en", "worst"):
        for limit, steps in ((end[measure] * 0.999, [10]), (end[measure] * 1.001, [])):
            brake = Brake({name: limit}, measure=measure, beyond_noise=True)
            assert [breach.step for breach in brake.breaches(found.evaluations)] == steps


@pytest.mark.parametrize("measure", ["nats_per_byte", "relative"])
def test_beyond_noise_takes_the_means_own_interval(measure):
    found = history({"en": 0.1, "es": 0.2}, scatter=2.0)
    change = found.last.forgetting
    of_measure = {"nats_per_byte": change.mean_interval, "relative": change.relative_mean_interval}
    low = of_measure[measure][0]
    for limit, count in ((low - 1e-6, 1), (low + 1e-6, 0)):
        brake = Brake({"mean": limit}, measure=measure, beyond_noise=True)
        assert len(brake.breaches(found.evaluations)) == count


COURSE = (
    {"zh": -0.5, "en": 0.02},
    {"zh": -0.9, "en": 0.08},
    {"zh": -1.0, "en": 0.30},  # over 10%
    {"zh": -0.8, "en": 0.09},  # within again
    {"zh": -1.2, "en": 0.40},
)


def test_what_each_action_makes_of_a_course():
    found = history(*COURSE)
    all_of_it, until_broken = found.evaluations, found.evaluations[:4]
    limits = {"en": 0.10}
    warn, stop, roll_back, select = (
        Brake(limits, action) for action in ("warn", "stop", "roll_back", "select")
    )
    assert [one.step for one in warn.within(all_of_it)] == [0, 10, 20, 40]
    assert warn.ended_at(all_of_it) is select.ended_at(all_of_it) is None
    assert stop.ended_at(until_broken) == roll_back.ended_at(until_broken) == 30
    assert stop.ended_at(until_broken[:3]) is None
    assert warn.model(all_of_it).step == 50
    assert stop.model(until_broken).step == 30
    assert roll_back.model(until_broken).step == 20
    assert roll_back.model(until_broken[:3]).step == 20
    assert [select.model(all_of_it[:n]).step for n in range(1, 7)] == [0, 10, 20, 20, 20, 20]
    assert [one.goes_back for one in (warn, stop, roll_back, select)] == [False, False, True, True]


def test_select_without_a_target_takes_the_last_within():
    found = history(*COURSE, target=None)
    assert Brake({"en": 0.10}, "select").model(found.evaluations).step == 40


def test_of_equal_gains_select_takes_the_smaller_loss():
    found = history({"zh": -0.5, "en": 0.08}, {"zh": -0.5, "en": 0.02}, {"zh": -0.5, "en": 0.05})
    assert Brake({"en": 0.10}, "select").model(found.evaluations).step == 20


def test_the_base_is_within_any_limit():
    found = history({"en": 1.0})
    for action in ("roll_back", "select"):
        assert Brake({"worst": 1e-9}, action).model(found.evaluations).step == 0


def test_decisions_come_back_with_the_history():
    found = history(*COURSE[:3], scatter=2.0)
    again = History.from_dict(found.state_dict())
    for noise in (True, False):
        brake = Brake({"en": 0.05, "worst": 0.1}, "roll_back", beyond_noise=noise)
        assert brake.to_dict(found.evaluations) == brake.to_dict(again.evaluations)
        assert brake.breaches(found.evaluations)


def test_says_what_was_exceeded_and_which_model_is_left():
    found = history(*COURSE[:3])
    brake = Brake({"en": 0.1, "mean": 0.01}, "roll_back")
    assert brake.sentences(found.evaluations) == [
        "the held-out languages have lost on average 2% of the base's NLL per byte at step 20, "
        "more than the limit of 1%",
        "en has lost 15% of the base's NLL per byte at step 30, more than the limit of 10%",
        "the model is that of step 10, and training came to 30",
    ]
    brake = Brake({"worst": 0.5}, measure="nats_per_byte")
    assert brake.sentences(found.evaluations) == [
        "no limit was exceeded",
        "the model is that of step 30",
    ]


def test_results_have_the_form_that_reports_read():
    found = history(*COURSE[:3])
    assert Brake({"en": 0.1}, "roll_back").to_dict(found.evaluations) == {
        "limits": {"en": 0.1},
        "measure": "relative",
        "action": "roll_back",
        "beyond_noise": False,
        "breaches": [{"step": 30, "name": "en", "value": pytest.approx(0.15), "limit": 0.1}],
        "ended_at_step": 30,
        "model_step": 20,
    }


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"limits": {}}, "must be one or more"),
        ({"limits": {1: 0.1}}, "named by language, got 1; put it in quotes"),
        ({"limits": {"en": 0}}, "limit of 'en' must be a number above 0, got 0"),
        ({"limits": {"en": math.nan}}, "above 0, got nan"),
        ({"limits": {"en": 1}, "action": "rollback"}, r"got 'rollback' \(did you mean 'roll_back'"),
        ({"limits": {"en": 1}, "measure": "relativ"}, r"did you mean 'relative'"),
        (
            {"limits": {"mean": 1}, "measure": "perplexity", "beyond_noise": True},
            "needs an interval of the mean",
        ),
    ],
)
def test_values_that_cannot_work_are_refused(told, said):
    with pytest.raises(UserError, match=said):
        Brake(**told)


@pytest.mark.parametrize(
    ("limits", "languages", "said"),
    [
        ({"span": 1}, ("zh", "spa", "en"), r"'span', which is not .* \(did you mean 'spa'\?\)"),
        ({"zh": 1}, ("zh", "en"), "'zh', which is trained on, is not one of the held-out"),
        ({"mean": 1}, ("zh", "mean"), "a language is called 'mean'"),
        ({"worst": 1}, ("zh", "one"), "beyond_noise needs an interval of what 'one' loses"),
    ],
)
def test_limits_that_fit_no_language_are_refused(limits, languages, said):
    brake = Brake(limits, beyond_noise="one" in languages)
    texts = {name: [name] if name == "one" else [name, name] for name in languages}
    with pytest.raises(UserError, match=said):
        brake.check(texts, "zh")
