import math
from statistics import median

import numpy as np
import pytest
import torch
from torch import nn

from freezetrain.errors import CheckError
from freezetrain.freezing import freeze
from freezetrain.regions import Region
from freezetrain.training.optimizer import BadSteps


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
    bad, good, expected, found = BadSteps("skip", spike_factor=3.0), [], [], []
    for step, norm in enumerate(norms, 1):
        spike = len(good) >= 20 and norm > 3.0 * median(good[-100:])
        expected.append(spike)
        found.append(bad.is_bad(2.0, norm, step))
        if not spike:
            good.append(norm)
    assert found == expected
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
        bad, found = BadSteps("skip", spike_factor=2.5), []
        for step, norm in enumerate(norms):
            if step in cuts:
                state = bad.state_dict()
                bad = BadSteps("skip", spike_factor=2.5)
                bad.load_state_dict(state)
            found.append(bad.is_bad(math.nan if step % 50 == 7 else 2.0, norm, step))
        return found, bad.skipped

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
