"""Marks, against a plain look at each of them."""

from itertools import pairwise

import pytest

from freezetrain.errors import UserError
from freezetrain.evaluation import PAPER_SAMPLES
from freezetrain.evaluation.schedule import Schedule, Trained

COUNTS = [0, 3, 4, 5, 19, 20, 47, 48, 60, 61, 200, 203]  # jumps over marks, and onto them


def due(schedule: Schedule, **names: int) -> list[int]:
    """The counts, of one name, at which an evaluation is due."""
    (name,) = names
    course = [Trained(**{"step": step, name: count}) for step, count in enumerate(COUNTS)]
    return [getattr(now, name) for before, now in pairwise(course) if schedule.due(before, now)]


def expected(marks: range | tuple[int, ...]) -> list[int]:
    """Those that are the first to reach some mark."""
    return [now for before, now in pairwise(COUNTS) if any(before < m <= now for m in marks)]


def test_samples_and_tokens_are_due_at_the_first_step_that_reaches_a_mark():
    marks = (4, 50, 200, 60)
    assert due(Schedule(at_samples=marks), samples=0) == expected(marks) == [4, 60, 200]
    every = Schedule(every_n_tokens=20)
    assert due(every, tokens=0) == expected(range(20, 300, 20)) == [20, 47, 60, 200]


@pytest.mark.parametrize(("schedule", "every"), [(Schedule(every_n_steps=3), 3), (Schedule(), 100)])
def test_steps(schedule, every):
    steps = [Trained(step) for step in range(305)]
    found = [now.step for before, now in pairwise(steps) if schedule.due(before, now)]
    assert found == list(range(every, 305, every))


def test_the_papers_samples():
    schedule = Schedule(at_samples=PAPER_SAMPLES)
    steps = [Trained(step, samples=step * 256) for step in range(1000)]  # 2 x 16 x 8 GPUs
    found = [now.step for before, now in pairwise(steps) if schedule.due(before, now)]
    assert found == [8, 20, 40, 79, 196, 782]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be 1 or more, got 0"),
        ({"every_n_tokens": -1}, "every_n_tokens must be 1 or more, got -1"),
        ({"at_samples": (0,)}, r"one of them above 0, got \(0,\)"),
        ({"at_samples": (-1, 4)}, "numbers of training samples"),
        (
            {"every_n_steps": 5, "at_samples": (4,)},
            "expected one of .* got every_n_steps, at_samples; leave the others out",
        ),
        ({"every_n_steps": 5, "every_n_tokens": 5}, "got every_n_steps, every_n_tokens;"),
    ],
)
def test_schedules_that_cannot_work_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Schedule(**options)


@pytest.mark.parametrize("options", [{"every_n_tokens": 5}, {"at_samples": (5,)}])
def test_what_nobody_counts_is_refused(options):
    with pytest.raises(UserError, match=r"not counted; pass (tokens|samples)=, over all ranks"):
        Schedule(**options).due(Trained(0, 0, 0), Trained(1))
