"""ForgettingBrakeCallback in the Trainer of transformers, on one process."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hf_runs import trainer
from knowing_model import knowing_model
from trainer_reference import llama, weights_of
from transformers import Trainer, TrainerCallback
from watched_texts import texts

from freezetrain.errors import UserError
from freezetrain.integrations.hf import RegionFreezeCallback
from freezetrain.integrations.hf_brake import ForgettingBrakeCallback
from freezetrain.integrations.hf_forgetting import ForgettingTrackerCallback
from freezetrain.regions import Region

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


class Course(TrainerCallback):
    """The weights before the first step and after each."""

    def __init__(self):
        self.weights = {}

    def on_train_begin(self, args, state, control, model, **_):
        self.weights[state.global_step] = weights_of(model)

    def on_step_end(self, args, state, control, model, **_):
        self.weights[state.global_step] = weights_of(model)


class Run:
    """A run of the Trainer, and what it came to."""

    def __init__(self, folder: Path, told: dict | None, *more, resume=None, **options):
        self.tracker = ForgettingTrackerCallback(
            texts(), "sw", every_n_steps=2, max_length=16, table=False
        )
        self.course = Course()
        callbacks = [self.tracker]
        if told is not None:
            self.brake = ForgettingBrakeCallback(self.tracker, **told)
            callbacks.append(self.brake)
        self.trainer: Trainer = trainer(
            knowing_model(), folder, *callbacks, self.course, *more, **{"steps": 8, **options}
        )
        self.trainer.train(resume_from_checkpoint=resume)
        self.weights = weights_of(self.trainer.model)

    @property
    def step(self) -> int:
        return self.trainer.state.global_step

    def is_of(self, step: int) -> bool:
        expected = self.course.weights[step]
        return all(torch.equal(value, expected[name]) for name, value in self.weights.items())

    def lost(self, language: str = "en") -> dict[int, float]:
        return {
            one.step: one.forgetting.languages[language].relative
            for one in self.tracker.history.evaluations
        }


@pytest.fixture(scope="module")
def limits(tmp_path_factory) -> dict[str, float]:
    """What may be lost, between what is lost after 4 and after 6 steps."""
    lost = Run(tmp_path_factory.mktemp("free"), None).lost()
    assert list(lost) == [0, 2, 4, 6, 8]
    assert max(lost[2], lost[4], 0) < lost[6], lost
    return {"en": (max(lost[2], lost[4], 0) + lost[6]) / 2}


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_rolls_back_to_the_last_evaluation_within(tmp_path, limits):
    run = Run(tmp_path, {"limits": limits, "action": "roll_back"})
    assert run.step == 6
    assert run.is_of(4)
    assert not run.is_of(6)
    assert checkpoints(tmp_path) == ["brake-base", "checkpoint-2", "checkpoint-4"]
    told = run.brake.results()
    assert (told["ended_at_step"], told["model_step"]) == (6, 4)
    assert list(run.lost()) == [0, 2, 4, 6], "a model that was loaded is not evaluated"


@pytest.mark.exhaustive
def test_the_checkpoint_to_go_back_to_outlives_the_total_limit(tmp_path, limits):
    run = Run(
        tmp_path, {"limits": limits, "action": "roll_back"},
        save_strategy="steps", save_steps=1, save_total_limit=1,
    )  # fmt: skip
    assert run.is_of(4)


def test_stops_and_warns(tmp_path, limits):
    run = Run(tmp_path / "stop", {"limits": limits})
    assert run.step == 6
    assert run.is_of(6)
    run = Run(tmp_path / "warn", {"limits": limits, "action": "warn"})
    assert run.step == 8
    assert run.is_of(8)
    assert run.brake.results()["breaches"][0]["step"] == 6
    assert not (tmp_path / "warn").exists() or checkpoints(tmp_path / "warn") == []


def test_selects_the_best_within(tmp_path, limits):
    run = Run(tmp_path, {"limits": limits, "action": "select"})
    assert run.step == 8
    gains = {one.step: one.forgetting.target_gain for one in run.tracker.history.evaluations}
    best = max((s for s in gains if run.lost()[s] <= limits["en"]), key=gains.__getitem__)
    assert run.is_of(best)
    assert run.brake.results()["model_step"] == best


def test_goes_back_to_the_base(tmp_path):
    run = Run(tmp_path, {"limits": {"worst": 1e-9}, "action": "roll_back"})
    assert run.is_of(0)
    assert not run.is_of(run.step)


def test_a_run_within_its_limits_keeps_its_last_weights(tmp_path):
    run = Run(tmp_path, {"limits": {"worst": 10.0}, "action": "roll_back"}, steps=5)
    assert list(run.lost()) == [0, 2, 4, 5]
    assert run.is_of(5)
    assert run.brake.results()["model_step"] == 5


class Ends(TrainerCallback):
    """Another reason to end, after the tracker and the brake had their turn."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop |= state.global_step == self.step


def test_another_end_than_an_evaluations_is_no_reason_to_go_back(tmp_path):
    run = Run(tmp_path, {"limits": {"worst": 10.0}, "action": "roll_back"}, Ends(3))
    assert run.step == 3
    assert run.is_of(3)
    assert list(run.lost()) == [0, 2, 3]


@pytest.mark.exhaustive
@pytest.mark.parametrize("action", ["roll_back", "select"])
def test_what_another_end_leaves_is_held_to_the_limits(tmp_path, action):
    lost = Run(tmp_path / "free", None, Ends(7)).lost()
    assert list(lost) == [0, 2, 4, 6, 7]
    assert lost[6] < lost[7]
    told = {"limits": {"en": (lost[6] + lost[7]) / 2}, "action": action}
    run = Run(tmp_path / "held", told, Ends(7))
    step = run.brake.results()["model_step"]
    assert run.brake.results()["breaches"][-1]["step"] == 7
    assert step < 7
    assert run.is_of(step)


@pytest.mark.exhaustive
def test_the_step_of_another_end_can_be_selected(tmp_path):
    run = Run(tmp_path, {"limits": {"worst": 10.0}, "action": "select"}, Ends(7))
    gains = {one.step: one.forgetting.target_gain for one in run.tracker.history.evaluations}
    assert max(gains, key=gains.__getitem__) == 7
    assert run.is_of(7)
    assert run.brake.results()["model_step"] == 7


def test_training_is_bit_identical(tmp_path, limits):
    plain = Run(tmp_path / "plain", None)
    held = Run(tmp_path / "held", {"limits": {"worst": 10.0}, "action": "select"})
    for step, weights in plain.course.weights.items():
        for name, value in weights.items():
            assert torch.equal(value, held.course.weights[step][name])


@pytest.mark.parametrize(
    "action", ["roll_back", pytest.param("select", marks=pytest.mark.exhaustive)]
)
def test_a_killed_run_goes_on_and_back(tmp_path, limits, action):
    class Dies(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 5:
                raise KeyboardInterrupt

    told = {"limits": limits, "action": action}
    options = {"save_strategy": "steps", "save_steps": 5}
    whole = Run(tmp_path / "whole", told, **options)
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path / "killed", told, Dies(), **options)
    again = Run(tmp_path / "killed", told, resume=True, **options)
    assert again.brake.results() == whole.brake.results()
    assert all(torch.equal(value, whole.weights[name]) for name, value in again.weights.items())
    step = whole.brake.model.step
    gone = tmp_path / "killed" / (f"checkpoint-{step}" if step else "brake-base")
    state = json.loads((tmp_path / "killed" / "checkpoint-5" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(gone)
    shutil.rmtree(gone)
    with pytest.raises(UserError, match=f"would go back to step {step}, and .* is not there"):
        Run(tmp_path / "killed", told, resume=str(tmp_path / "killed" / "checkpoint-5"), **options)


def test_a_run_that_was_stopped_is_not_trained_on(tmp_path, limits):
    options = {"save_strategy": "steps", "save_steps": 6}
    Run(tmp_path, {"limits": limits}, **options)
    with pytest.raises(UserError, match="ended by its brake at step 6, and nothing is left"):
        Run(tmp_path, {"limits": limits}, resume=True, **options)


def test_frozen_entries_stay_through_it(tmp_path, limits):
    region = Region.random(llama(), 0.2, seed=1)
    told = {"limits": {"worst": 1e-9}, "action": "roll_back"}
    run = Run(tmp_path, told, RegionFreezeCallback(region))
    assert run.is_of(0)


def test_refuses_what_would_load_another_model(tmp_path):
    told = {"limits": {"en": 0.1}, "action": "roll_back"}
    with pytest.raises(UserError, match="leave out load_best_model_at_end"):
        Run(tmp_path, told, load_best_model_at_end=True)
    with pytest.raises(UserError, match=r"limits 'eng'.*did you mean 'en'"):
        Run(tmp_path, {"limits": {"eng": 0.1}})


def test_stands_after_its_tracker(tmp_path):
    tracker = ForgettingTrackerCallback(texts(), "sw", max_length=16, table=False)
    brake = ForgettingBrakeCallback(tracker, {"en": 0.1})
    for callbacks in ([brake], [brake, tracker]):
        with pytest.raises(UserError, match="does not have that tracker before it"):
            trainer(llama(), tmp_path, *callbacks).train()
