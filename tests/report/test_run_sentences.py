from typing import Any

import pytest
from made_runs import make_run

from freezetrain.report import run_sentences


def changed(run: dict[str, Any], **values: Any) -> dict[str, Any]:
    run["history"]["evaluations"][-1]["forgetting"] |= values
    return run


def test_introduction_counts_models_and_languages() -> None:
    said = run_sentences.introduction([make_run("a"), make_run("b", languages=("en", "it", "zh"))])
    assert said.startswith("2 models, trained further on Chinese, against their base, on held-out ")
    assert "text of 4 languages that were only watched" in said
    said = run_sentences.introduction([make_run(languages=("en",), target=None)])
    assert said.startswith("1 model against its base, on held-out text of 1 language that was only")
    assert "target" not in said


def test_seen_says_what_rose_and_what_fell() -> None:
    run = changed(make_run("a"), mean=0.0412, relative_mean=0.031, target_gain=0.25)
    run["history"]["evaluations"][-1]["forgetting"]["worst"] = {
        "language": "es",
        "delta_nll_per_byte": 0.1234,
    }
    said = run_sentences.seen(run)
    assert "“a”: the loss of Chinese, the target, fell by 0.250 nats per byte, that of " in said
    assert "held-out languages rose by 0.041 on average (+3.10%)." in said
    assert "Spanish fared worst (+0.123)." in said
    said = run_sentences.seen(changed(run, mean=-0.02, target_gain=-0.1))
    assert "the target, rose by 0.100" in said
    assert "languages fell by 0.020 on average" in said


def test_seen_says_what_did_not_change_and_what_a_run_went_back_from() -> None:
    brake = {"model_step": 0, "limits": {}, "measure": "relative"}
    run = changed(make_run("a") | {"brake": brake}, mean=0.07, relative_mean=0.05, target_gain=0.2)
    said = run_sentences.seen(run)
    assert said.startswith(
        "“a”: the model is that of step 0: the loss of Chinese, the target, did not change, that "
        "of the held-out languages did not change on average (0.00%)."
    )
    assert "At step 60, the last, the loss of Chinese, the target, fell by 0.200 nats" in said
    assert "languages rose by 0.070 on average (+5.00%)." in said


def test_seen_tells_differences_from_noise() -> None:
    run = make_run("a", ("en", "es", "de", "it", "zh"))
    assert "2 of 4 languages are forgotten beyond noise, 1 improved, 1 within noise." in (
        run_sentences.seen(run)
    )
    one = run_sentences.seen(make_run("a", ("en", "zh")))
    assert "0 of 1 language is forgotten beyond noise, 1 improved" in one
    languages = run["history"]["evaluations"][-1]["forgetting"]["languages"]
    languages["de"]["interval"] = None
    said = run_sentences.seen(run)
    assert "3 languages with an interval: 1 of 3 languages is forgotten beyond noise" in said
    for language in languages.values():
        language["interval"] = None
    assert "No intervals are known, so that small differences may be noise." in (
        run_sentences.seen(run)
    )


def test_no_plane_names_the_runs_without_a_target() -> None:
    runs = [make_run("a"), make_run("b", target=None), make_run("c", target=None)]
    assert run_sentences.no_plane(runs[:1]) == ""
    assert "“b” has no single target language" in run_sentences.no_plane(runs[:2])
    assert "“b” and “c” have no single target language" in run_sentences.no_plane(runs)


@pytest.mark.parametrize(
    ("brake", "expected"),
    [
        (
            {"measure": "nats_per_byte", "limits": {"worst": 0.02}, "action": "warn"},
            "at most 0.0200 nats per byte for the worst held-out language may be lost; a limit "
            "that is exceeded is told, and training goes on. No limit was exceeded. The model is "
            "that of step 60.",
        ),
        (
            {
                "ended_at_step": 1200,
                "model_step": 0,
                "breaches": [{"step": 1200, "name": "es", "value": None, "limit": 0.5}],
            },
            "at most 50.00% for Spanish may be lost; training ends where a limit is exceeded, and "
            "the model goes back to the last evaluated step within the limits. A limit was first "
            "exceeded at step 1,200: Spanish had lost ∞. Training ended at step 1,200. The model "
            "is that of step 0.",
        ),
    ],
)
def test_brake(brake: dict[str, Any], expected: str) -> None:
    told: dict[str, Any] = {
        "measure": "perplexity",
        "limits": {"es": 0.5},
        "action": "roll_back",
        "breaches": [],
        "ended_at_step": None,
        "model_step": 60,
    }
    assert expected in run_sentences.brake_seen(make_run("a") | {"brake": told | brake})


def test_brake_without_a_target_selects_the_last_within() -> None:
    brake = {
        "limits": {"es": 0.5}, "measure": "relative", "action": "select", "breaches": [],
        "ended_at_step": None, "model_step": 60,
    }  # fmt: skip
    said = run_sentences.brake_seen(make_run("a", target=None) | {"brake": brake})
    assert "the model is that of the last evaluated step within the limits. No limit" in said
    assert "target" not in said
    assert "at which the target gained most" in run_sentences.brake_seen(
        make_run("a") | {"brake": brake}
    )


def test_brake_tells_a_loss_from_a_limit_that_it_is_just_above() -> None:
    brake = {
        "limits": {"es": 0.03, "mean": 1e-6}, "measure": "relative", "action": "stop",
        "breaches": [{"step": 40, "name": "es", "value": 0.03003, "limit": 0.03}],
        "ended_at_step": 40, "model_step": 40,
    }  # fmt: skip
    said = run_sentences.brake_seen(make_run("a") | {"brake": brake})
    assert "at most 3.00% for Spanish and 0.0001% for the held-out languages on average" in said
    assert "Spanish had lost 3.003%." in said
    said = run_sentences.brake_seen(make_run("a") | {"brake": brake | {"measure": "nats_per_byte"}})
    assert "at most 0.0300 nats per byte for Spanish and" in said
    assert "Spanish had lost 0.03003 nats per byte." in said


def test_a_whole_set_is_no_subsample() -> None:
    assert run_sentences.subsampled(make_run("a")) == ""
