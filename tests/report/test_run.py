"""A run of the report: its losses in each measure, its model, and its way through JSON."""

import json
import math
from dataclasses import replace

import pytest
from made_runs import REGION, benchmarks, braked, generation, make_run, texts, two

from freezetrain.evaluation.brake import Brake
from freezetrain.report.run import Rehearsed, Run, have_courses, shared_measure

MEASURES = ["nats_per_byte", "relative", "perplexity"]


def by_hand(run: Run, language: str, measure: str, nll: float | None = None) -> float:
    """From the sums alone; ``nll``: of the model, None for its own."""
    first, last = (run.evaluations[place].figures[language] for place in (0, -1))
    before, after = first.nll, last.nll if nll is None else nll
    if measure == "relative":
        return after / before - 1
    if measure == "perplexity":
        return math.exp((after - before) / first.tokens) - 1
    return (after - before) / first.bytes


@pytest.mark.parametrize("measure", MEASURES)
def test_losses_in_each_measure_follow_from_the_sums(measure):
    run = make_run()
    expected = [by_hand(run, language, measure) for language in ("en", "es", "de")]
    found = [run.model.loss(language, measure).value for language in ("en", "es", "de")]
    assert found == pytest.approx(expected)
    assert run.model.loss("mean", measure).value == pytest.approx(sum(expected) / 3)
    assert run.model.loss("worst", measure).value == pytest.approx(max(expected))


@pytest.mark.parametrize("measure", MEASURES)
def test_an_interval_ends_where_a_loss_of_its_ends_would_be(measure):
    run = make_run()
    before = run.history.base.figures["de"]
    ends = run.model.forgetting.languages["de"].interval
    expected = [
        by_hand(run, "de", measure, nll=before.nll + end * before.bytes) for end in ends or ()
    ]
    assert run.model.loss("de", measure).interval == pytest.approx(tuple(expected))
    assert make_run(noise=None).model.loss("de", measure).interval is None


def test_the_measure_is_that_of_the_brakes_where_they_agree():
    relative = make_run("b", brake=Brake({"es": 0.05}))
    other = make_run("c", brake=Brake({"es": 0.05}, measure="perplexity"))
    assert shared_measure([make_run("a")]) == "nats_per_byte"
    assert shared_measure([make_run("a"), relative]) == "relative"
    assert shared_measure([relative, other]) == "nats_per_byte"


def test_perplexity_is_no_measure_where_a_language_has_no_ratio():
    run = make_run(brake=Brake({"es": 0.05}, measure="perplexity"))
    assert shared_measure([run]) == "perplexity"
    languages = run.evaluations[2].forgetting.languages
    languages["de"] = replace(languages["de"], perplexity_ratio=None)
    assert shared_measure([run]) == "nats_per_byte"


def test_the_model_is_of_the_step_that_the_brake_went_back_to():
    assert make_run().model.step == 60
    run = braked(after=20)
    assert run.model.step == 20
    assert run.limit("de", "relative") == pytest.approx(
        run.model.loss("de", "relative").value, 2e-3
    )
    assert run.limit("de", "nats_per_byte") is run.limit("es", "relative") is None
    assert make_run(brake=Brake({"de": 1e-9}, "roll_back")).model.step == 0


def test_a_run_comes_back_from_json():
    run = replace(two()[0], region=REGION, texts=texts(["en"]), benchmarks=benchmarks("plain"))
    run = replace(run, average=run.model.forgetting, watch={"max_length": 512})
    run = replace(run, generation=generation())
    run = replace(run, rehearsed=[Rehearsed(10, 0.25, 300), Rehearsed(20, 0.5, 100)])
    data = json.loads(json.dumps(run.to_dict(), allow_nan=False))
    assert Run.from_dict(data) == run
    assert data["brake"]["model_step"] == 20
    assert data["history"]["max_length"] == 512
    bare = {"name": "a", "history": data["history"]}
    assert Run.from_dict(bare) == Run("a", run.history, watch={"max_length": 512})


def test_a_course_is_more_than_one_model_beside_its_base():
    assert have_courses([make_run()])
    assert not have_courses([make_run(steps=(0, 1))])
    assert have_courses([make_run(steps=(0, 1), brake=Brake({"de": 9.0}))])
