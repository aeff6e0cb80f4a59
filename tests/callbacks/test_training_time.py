"""How long a run will take, at the pace of its first steps."""

from types import SimpleNamespace

import pytest

from freezetrain.callbacks import ForgettingTracker, training_time
from freezetrain.callbacks.training_time import TrainingTime
from freezetrain.evaluation import Document
from freezetrain.evaluation.schedule import Trained


@pytest.mark.parametrize(
    ("schedule", "evaluations"),
    [({"every_n_steps": 20}, 5), ({"every_n_tokens": 500}, 20), ({"at_samples": [0, 2, 900]}, 1)],
)
def test_it_is_said_once_at_the_pace_of_the_steps(monkeypatch, schedule, evaluations):
    now = [0.0]
    monkeypatch.setattr(training_time.time, "monotonic", lambda: now[0])
    documents = {"en": [Document(list(range(8)), 8)]}
    tracker = ForgettingTracker(documents, **schedule)
    tracker.seconds = 30.0  # of the base
    trainer = SimpleNamespace(global_step=0, max_steps=100, callbacks=[tracker])
    lines = []
    time = TrainingTime(trainer, lines.append)
    for step in range(1, 40):
        now[0] += 60.0 if step == 1 else 2.0  # the first step compiles
        if step == 3:  # an evaluation, which is no step
            now[0] += 100.0
            tracker.seconds += 100.0
        tracker.trained = Trained(step, 100 * step, step)
        trainer.global_step = step
        time.after_step(trainer)
        assert bool(lines) == (step >= 4)  # three steps of 2 s are the first 5 s
    evaluating = {
        5: "2 min for 5 evaluations",
        20: "10 min for 20 evaluations",
        1: "30 s for an evaluation",
    }[evaluations]
    assert lines == [
        f"training: about 3 min for the 96 steps that are left, and {evaluating}; shorter with "
        "fewer or shorter steps, or fewer documents that are evaluated"
    ]


def test_nothing_is_said_of_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(training_time.time, "monotonic", lambda: now[0])
    trainer = SimpleNamespace(global_step=0, max_steps=30, callbacks=[])
    lines = []
    time = TrainingTime(trainer, lines.append)
    for step in range(1, 31):
        now[0] += 2.0
        trainer.global_step = step
        time.after_step(trainer)
    assert lines == []
