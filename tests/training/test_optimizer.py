"""The optimizer's learning rate and kernel, and steps that would do harm."""

import math
from itertools import pairwise
from statistics import median
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup, get_wsd_schedule

from freezetrain.errors import CheckError
from freezetrain.freezing import freeze
from freezetrain.recipe.optimization import Optimization
from freezetrain.regions import Region
from freezetrain.training.groups import Group
from freezetrain.training.optimizer import (
    BadSteps,
    build_optimizer,
    learning_rate_factor,
)


def course(steps, **settings):
    recipe = Optimization(**settings)
    return [learning_rate_factor(step, steps, recipe) for step in range(steps)]


def factors(schedule, steps):
    """What a schedule of transformers multiplies the learning rate with at each step."""
    optimizer = schedule.optimizer
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


@pytest.fixture
def one_parameter():
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)


def test_cosine_against_transformers(one_parameter):
    theirs = factors(get_cosine_schedule_with_warmup(one_parameter, 10, 50), 50)
    ours = course(50, warmup_steps=10)
    # Theirs warms up from 0, a step that does nothing; ours is one tick ahead there.
    assert ours == pytest.approx([*theirs[1:11], *theirs[10:]])
    assert min(ours) > 0


def test_wsd_against_transformers(one_parameter):
    theirs = factors(
        get_wsd_schedule(
            one_parameter, num_warmup_steps=10, num_decay_steps=20, num_stable_steps=30,
            decay_type="linear", min_lr_ratio=0.1,
        ),
        60,
    )  # fmt: skip
    # Theirs warms up from the ratio that it ends at.
    ours = course(
        60, warmup_steps=10, warmup_from=0.1, schedule="wsd", decay_ratio=1 / 3,
        min_learning_rate_ratio=0.1,
    )  # fmt: skip
    assert ours == pytest.approx([*theirs[1:11], *theirs[10:]])
    assert ours.count(1.0) == 1 + 30 + 1  # the warm-up's last, those that hold, the decay's first


def test_constant_holds_the_peak():
    ours = course(8, warmup_steps=4, schedule="constant", min_learning_rate_ratio=0.5)
    assert ours == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_warms_up_in_a_straight_line_from_the_share_given(schedule):
    ours = course(20, warmup_steps=5, warmup_from=0.5, schedule=schedule)
    assert ours[:5] == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0])


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_ends_at_the_ratio_one_step_after_the_last(schedule):
    settings = Optimization(warmup_steps=0, schedule=schedule, min_learning_rate_ratio=0.1)
    assert learning_rate_factor(20, 20, settings) == pytest.approx(0.1)
    assert learning_rate_factor(25, 20, settings) == pytest.approx(0.1)
    assert learning_rate_factor(19, 20, settings) > 0.1


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 100), (1, 0), (3, 3), (3, 2), (7, 100)])
@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_short_runs_never_divide_by_zero(schedule, steps, warmup, ratio):
    ours = course(steps, warmup_steps=warmup, schedule=schedule, decay_ratio=ratio)
    assert all(0 < factor <= 1 for factor in ours)
    rising = min(warmup, steps)
    assert ours[:rising] == pytest.approx([(step + 1) / rising for step in range(rising)])
    assert all(now >= later for now, later in pairwise(ours[max(rising - 1, 0) :]))


def test_wsd_may_fall_from_the_end_of_the_warm_up_or_never():
    falls = course(10, warmup_steps=5, schedule="wsd", decay_ratio=1.0)
    assert falls[4:] == pytest.approx([1, 1, 0.8, 0.6, 0.4, 0.2])
    assert course(10, warmup_steps=5, schedule="wsd", decay_ratio=0.0)[4:] == [1.0] * 6


def test_optimizer_takes_the_recipe(model):
    settings = Optimization(learning_rate=3e-4, beta1=0.8, beta2=0.9, warmup_steps=2)
    optimizer, schedule = build_optimizer(model, settings, 10)
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1.5e-4)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(3e-4)


def test_fused_where_it_steps_on_a_gpu_or_cpu(model, monkeypatch):
    built = []

    class Recorded(torch.optim.AdamW):
        def __init__(self, groups, **options):
            built.append(options.pop("fused"))
            super().__init__(groups, **options)

    monkeypatch.setattr("freezetrain.training.optimizer_kinds.AdamW", Recorded)
    settings = Optimization()
    build_optimizer(model, settings, 10)
    build_optimizer(model, settings, 10, torch.device("cuda", 0))
    monkeypatch.setattr(
        "freezetrain.training.optimizer.parameter_groups",
        lambda *_: [Group(1.0, True, parameters=[OnGPU(torch.zeros(2))])],
    )
    build_optimizer(model, settings, 10)
    build_optimizer(model, settings, 10, torch.device("cpu"))
    build_optimizer(model, settings, 10, torch.device("meta"))
    assert built == [True, True, True, True, None]


class OnGPU(nn.Parameter):
    device = SimpleNamespace(type="cuda")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stops_the_run(value):
    bad = BadSteps("stop")
    assert not bad.is_bad(2.0, 1.0, 1)
    with pytest.raises(CheckError, match=rf"^the loss is {value} at step 2; checkpoints .* kept"):
        bad.is_bad(value, 1.0, 2)
    with pytest.raises(CheckError, match=rf"^the gradient norm is {value} at step 2;"):
        bad.is_bad(2.0, value, 2)


def test_without_a_norm_the_loss_alone_is_judged():
    bad = BadSteps("skip", spike_factor=2.0)
    assert not any(bad.is_bad(2.0, None, step) for step in range(1, 200))
    assert bad.is_bad(math.nan, None, 200)


def test_skipped_steps_are_counted_until_ten_in_a_row():
    bad = BadSteps("skip")
    for step in range(1, 10):
        assert bad.is_bad(math.nan, 1.0, step)
    assert not bad.is_bad(2.0, 1.0, 10)  # the row ends
    for step in range(11, 20):
        assert bad.is_bad(2.0, math.inf, step)
    assert bad.skipped == 18
    with pytest.raises(CheckError, match=r"norm is inf at step 20, the 10th bad step in a row"):
        bad.is_bad(2.0, math.inf, 20)


def test_spikes_against_a_plain_loop():
    generator = np.random.default_rng(0)
    norms = np.exp(generator.normal(size=600)).tolist()
    bad, good, expected, judged = BadSteps("skip", spike_factor=3.0), [], [], []
    for step, norm in enumerate(norms, 1):
        spike = len(good) >= 20 and norm > 3.0 * median(good[-100:])
        expected.append(spike)
        judged.append(bad.is_bad(2.0, norm, step))
        if not spike:
            good.append(norm)
    assert judged == expected
    assert 20 < sum(expected) < 200
    assert bad.skipped == sum(expected)


def test_no_spikes_unless_asked_nor_among_the_first():
    bad = BadSteps("stop")
    assert not any(bad.is_bad(2.0, 100.0**step, step) for step in range(50))
    bad = BadSteps("stop", spike_factor=2.0)
    assert not any(bad.is_bad(2.0, 1.0 + 9 * (step % 2), step) for step in range(1, 20))
    assert not bad.is_bad(2.0, 1000.0, 20)  # the 20th: 19 are too few to say what is usual
    with pytest.raises(CheckError, match=r"norm is 1e\+03, more than 2 times the usual"):
        bad.is_bad(2.0, 1000.0, 21)


def test_a_resumed_run_decides_as_an_uninterrupted_one():
    generator = np.random.default_rng(1)
    norms = np.exp(generator.normal(size=300)).tolist()

    def decisions(cuts):
        bad, judged = BadSteps("skip", spike_factor=2.5), []
        for step, norm in enumerate(norms):
            if step in cuts:
                state = bad.state_dict()
                bad = BadSteps("skip", spike_factor=2.5)
                bad.load_state_dict(state)
            judged.append(bad.is_bad(math.nan if step % 50 == 7 else 2.0, norm, step))
        return judged, bad.skipped

    assert decisions({10, 57, 58, 200}) == decisions(set())


def test_a_row_of_bad_steps_goes_on_over_a_resume():
    bad = BadSteps("skip")
    assert all(bad.is_bad(math.nan, 1.0, step) for step in range(1, 6))
    again = BadSteps("skip")
    again.load_state_dict(bad.state_dict())
    assert all(again.is_bad(math.nan, 1.0, step) for step in range(6, 10))
    with pytest.raises(CheckError, match="at step 10, the 10th bad step in a row"):
        again.is_bad(math.nan, 1.0, 10)


def test_the_state_survives_a_checkpoint(tmp_path):
    bad = BadSteps("skip", spike_factor=2.0)
    for step, norm in enumerate([1.0, math.nan, 3.0, math.nan]):
        bad.is_bad(2.0, norm, step)
    torch.save(bad.state_dict(), tmp_path / "state")
    again = BadSteps("skip", spike_factor=2.0)
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert again.state_dict() == bad.state_dict()
    assert again.skipped == 2


@pytest.mark.parametrize("build", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_a_skipped_step_moves_nothing_under_a_freeze_with_decay(build):
    """Gradients of None are how an update is left out: no weight, no moment, no step count."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5, **build)

    def state():
        return [
            *(p.detach().clone() for p in model.parameters()),
            *(v.clone() for s in optimizer.state.values() for v in s.values()),
        ]

    def step(skip=False, scale=1.0):
        (model(torch.randn(3, 6)).square().mean() * scale).backward()
        if skip:
            optimizer.zero_grad(set_to_none=True)
        optimizer.step()
        optimizer.zero_grad()

    with freeze(model, optimizer, Region.random(model, 0.3, seed=0), audit_every=1) as handle:
        step(skip=True)  # the very first, when there are no moments yet
        assert not optimizer.state
        step()
        before = state()
        step(skip=True, scale=math.nan)
        assert len(before) == 4 + 4 * 3
        assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
        step()
        assert not any(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
        handle.verify()
