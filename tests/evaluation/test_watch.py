"""ForgettingWatch in a plain loop."""

import json

import pytest
import torch
from watched_loop import LENGTH, ROWS, Loop, Toy, documents

from freezetrain.errors import UserError
from freezetrain.evaluation import ForgettingWatch, evaluate, evaluate_documents, forgetting


def watch(**options) -> ForgettingWatch:
    settings = {"target": "sw", "every_n_steps": 2, "max_length": 16, "table": False}
    settings |= {"documents": documents(), **options}
    return ForgettingWatch(**settings)


def steps(watch: ForgettingWatch) -> list[int]:
    return [evaluation.step for evaluation in watch.history.evaluations]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every_n_steps": 2}, [0, 2, 4, 5]),
        ({"every_n_steps": None}, [0, 5]),
        ({"every_n_steps": None, "every_n_tokens": 60}, [0, 3, 5]),  # 24 tokens a step
        ({"every_n_steps": None, "at_samples": (0, 3, 8, 9, 20)}, [0, 1, 2, 3, 5]),  # 4 samples
    ],
)
def test_it_evaluates_at_the_start_when_due_and_at_the_end(options, expected):
    watched, loop = watch(**options), Loop()
    found = watched.start(loop.model)
    assert found is watched.history.base
    loop.train(watched, 5)
    assert steps(watched) == expected
    assert watched.end(loop.model, 5) is None, "the last step is evaluated already"
    for evaluation in watched.history.evaluations:
        assert evaluation.samples == evaluation.step * ROWS
        assert evaluation.tokens == evaluation.step * ROWS * LENGTH


def test_what_it_finds_is_what_evaluate_finds():
    watched, loop = watch(), Loop()
    base = evaluate_documents(loop.model, documents(), max_length=16)
    watched.start(loop.model)
    loop.train(watched, 3)
    adapted = evaluate_documents(loop.model, documents(), max_length=16)
    assert watched.history.last.forgetting == forgetting(base, adapted, "sw")
    assert watched.history.last.figures == evaluate(loop.model, documents(), max_length=16)
    assert watched.evaluate(loop.model) == watched.history.last.figures
    assert watched.base_of(watched.history.last) == watched.history.base.figures
    assert watched.history.last.forgetting.mean != 0.0


def test_windows_overlap_as_told():
    watched, loop = watch(max_length=8, overlap=5), Loop()
    watched.start(loop.model)
    told = {"max_length": 8, "overlap": 5}
    assert watched.history.base.figures == evaluate(loop.model, documents(), **told)
    assert watched.history.base.figures != evaluate(loop.model, documents(), max_length=8)


def test_training_is_bit_identical_with_and_without_it():
    plain = Loop().train(None, 6)
    state = torch.get_rng_state()
    watched, loop = watch(every_n_steps=1, time_share=1.0), Loop()
    watched.start(loop.model)
    loop.train(watched, 6)
    assert torch.equal(torch.get_rng_state(), state)
    assert loop.losses == plain.losses
    for mine, other in zip(loop.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert loop.model.training


def test_a_resumed_run_has_the_same_base():
    whole, loop = watch(), Loop()
    whole.start(loop.model)
    loop.train(whole, 6)

    first, loop = watch(), Loop()
    first.start(loop.model)
    loop.train(first, 4, end=False)
    kept = json.loads(json.dumps(first.state_dict()))
    again = watch()
    again.load_state_dict(kept)
    before = loop.model.tokens
    assert again.start(loop.model, 4) is None
    assert loop.model.tokens == before, "the base is not evaluated again"
    loop.train(again, 6)
    assert steps(again) == [0, 2, 4, 6]
    assert again.history.evaluations == whole.history.evaluations
    assert again.state_dict()["base_documents"] == whole.state_dict()["base_documents"]


def test_a_new_start_has_a_new_base():
    watched = watch()
    watched.start(Toy())
    Loop().train(watched, 2)
    watched.start(other := Toy(5))
    assert steps(watched) == [0]
    assert watched.history.base.figures == evaluate(other, documents(), max_length=16)
    assert (watched.trained.step, watched.trained.tokens) == (0, 0)
    resumed = watch()
    resumed.load_state_dict(watched.state_dict())
    resumed.start(other)
    assert resumed.history.base.figures == watched.history.base.figures
    resumed.start(Toy(6))
    assert resumed.history.base.figures == evaluate(Toy(6), documents(), max_length=16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 8}, "max_length 16, got 8"),
        ({"overlap": 2}, "overlap 1, got 2"),
        ({"time_share": 0.1}, "time_share None, got 0.1"),
        ({"target": "en"}, "target 'sw', got 'en'"),
        ({"documents": documents() | {"fr": documents()["de"]}}, "on no tokens of 'fr', got .* 8 "),
        ({"documents": documents() | {"en": documents(2)["en"]}}, "on 23 tokens of 'en', .* 23 t"),
    ],
)
def test_a_base_of_something_else_is_refused(change, message):
    first, loop = watch(), Loop()
    first.start(loop.model)
    other = watch(**change)

    def resume() -> None:
        other.load_state_dict(first.state_dict())
        other.start(loop.model, 2)

    with pytest.raises(UserError, match=message):
        resume()


def test_what_comes_before_start_is_refused():
    with pytest.raises(UserError, match="expected start before after_step"):
        watch().after_step(Toy(), 1)
    with pytest.raises(UserError, match="evaluate the base first"):
        watch().end(Toy(), 1)
    with pytest.raises(
        UserError, match=r"at step 3 .* without a base evaluation of ForgettingWatch"
    ):
        watch().start(Toy(), 3)


def test_counts_that_are_needed_and_not_given_are_refused():
    watched = watch(every_n_steps=None, at_samples=(8,))
    watched.start(Toy())
    with pytest.raises(UserError, match=r"due by the samples .* pass samples="):
        watched.after_step(Toy(), 1, tokens=24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "swa"}, "'swa' is not among .* mean 'sw'"),
        ({"documents": {"sw": documents()["sw"]}}, "at least one held-out"),
        *(
            ({"documents": {**documents(), name: documents()["sw"]}}, f"called '{name}'.*another")
            for name in ("mean", "worst", "backward_transfer", "target_gain")
        ),
        ({"every_n_tokens": 5}, "expected one of every_n_steps"),
        ({"time_share": 0.0}, "above 0 and at most 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        watch(**change)


def test_the_results_file(tmp_path, capsys):
    path = tmp_path / "run" / "forgetting.json"
    watched, loop = watch(results_path=path, table=True), Loop()
    watched.start(loop.model)
    loop.train(watched, 3)
    results = json.loads(path.read_text())
    told = {name: results.pop(name) for name in ("max_length", "overlap", "time_share")}
    assert told == {"max_length": 16, "overlap": 1, "time_share": None}
    times = {name: results.pop(name) for name in ("every_n_steps", "every_n_tokens", "at_samples")}
    assert times == {"every_n_steps": 2, "every_n_tokens": None, "at_samples": []}
    assert results.pop("subsample") is None
    assert results == json.loads(json.dumps(watched.history.to_dict()))
    assert [entry["samples"] for entry in results["evaluations"]] == [0, 8, 12]
    assert capsys.readouterr().out.count("Forgetting at step") == 3


def test_another_runs_results_are_not_overwritten_but_those_of_a_start_that_failed_are(tmp_path):
    path = tmp_path / "forgetting.json"
    watched = watch(results_path=path)
    watched.start(Toy())
    with pytest.raises(UserError, match=r"forgetting\.json' exists"):
        watch(results_path=path).start(Toy())
    watch(results_path=path, overwrite=True).start(Toy())
    watched.start(Toy(5))  # as after an exception in the first steps, with smaller batches
    assert json.loads(path.read_text()) == json.loads(json.dumps(watched._results()))
    watched.end(Toy(), 1)
    with pytest.raises(UserError, match=r"forgetting\.json' exists"):
        watched.start(Toy())


def test_a_resumed_run_goes_on_in_its_own_file_and_in_no_other(tmp_path):
    first, loop = watch(results_path=tmp_path / "own.json"), Loop()
    first.start(loop.model)
    loop.train(first, 4, end=False)

    def resumed(name: str, **options) -> ForgettingWatch:
        again = watch(results_path=tmp_path / name, **options)
        again.load_state_dict(json.loads(json.dumps(first.state_dict())))
        again.start(loop.model, 4)
        return again

    other = watch(results_path=tmp_path / "other.json")
    other.start(Toy(5))
    (tmp_path / "else.json").write_text("[1]")
    for name in ("other.json", "else.json"):
        before = (tmp_path / name).read_text()
        with pytest.raises(UserError, match=rf"{name}' exists, of another run; choose another"):
            resumed(name)
        assert (tmp_path / name).read_text() == before
        resumed(name, overwrite=True)
    for name in ("own.json", "new.json", "else.json"):
        resumed(name)
        found = json.loads((tmp_path / name).read_text())["evaluations"]
        assert [evaluation["step"] for evaluation in found] == [0, 2, 4]


def test_a_path_that_cannot_be_written_stops_before_any_work(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    model = Toy()
    with pytest.raises(UserError, match="can be written to"):
        watch(results_path=tmp_path / "file" / "results.json").start(model)
    assert model.tokens == 0
