"""Loss at equal gain, against curves whose formula is known."""

import math

import numpy as np
import pytest

from freezetrain.evaluation.equal_gain import loss_at_gain

TURNING = [(1e-4, 0.2, 0.1), (2e-4, 0.6, 0.4), (8e-4, 0.5, 0.9)]  # rate, gain, loss; turns back


def read(curve, gain):
    """(Loss, learning rate) of (learning rate, gain, loss) points."""
    rates, gains, losses = zip(*curve, strict=True) if curve else ((), (), ())
    reading = loss_at_gain([math.log(rate) for rate in rates], gains, losses, gain)
    return None if reading is None else (reading.loss, math.exp(reading.position))


@pytest.mark.parametrize(
    ("curve", "gain", "expected"),
    [
        (TURNING[:2], 0.4, (0.2, 1e-4 * math.sqrt(2))),  # √(0.1 · 0.4), half way
        (TURNING[:2], 0.55, (0.1 * 4 ** (7 / 8), 1e-4 * 2 ** (7 / 8))),
        (TURNING, 0.6, (0.4, 2e-4)),
        (TURNING, 0.2, (0.1, 1e-4)),
        (TURNING, 0.61, None),
        (TURNING, 0.19, None),
        (TURNING[:1], 0.2, (0.1, 1e-4)),
        (TURNING[:1], 0.3, None),
        ([], 0.3, None),
        # not above 0 at one end: the loss itself is linear
        ([(1e-4, 0.0, -0.1), (4e-4, 1.0, 0.3)], 0.5, (0.1, 2e-4)),
        ([(1e-4, 0.0, 0.0), (1e-3, 1.0, 0.3)], 0.1, (0.03, 1e-4 * 10**0.1)),
        # only the way back reaches it
        ([(1e-4, 0.6, 0.1), (4e-4, 0.2, 0.4)], 0.4, (0.2, 2e-4)),
    ],
)
def test_two_points_are_joined_by_a_straight_line(curve, gain, expected):
    assert read(curve, gain) == (expected if expected is None else pytest.approx(expected))


def parabolas(position):
    """Gain and logarithm of the loss, both parabolas; gains level off, as they do."""
    return (
        0.5 + 0.05 * position - 0.02 * position**2,
        -1.5 + 1.1 * position + 0.1 * position**2,
    )


@pytest.mark.parametrize("sign", [1, -1])  # losses above 0; losses below, taken as they are
@pytest.mark.parametrize("positions", [(-0.7, 0.0, 0.7), (-1.4, -0.7, -0.1, 0.7, 1.1)])
def test_parabolas_are_read_exactly_between_their_points(positions, sign):
    gains, log_losses = zip(*map(parabolas, positions), strict=True)
    losses = [math.exp(loss) for loss in log_losses] if sign > 0 else log_losses
    for position in np.linspace(positions[0], 0.7, 9)[1:-1]:
        gain, loss = parabolas(position)
        expected = (math.exp(loss) if sign > 0 else loss), position
        reading = loss_at_gain(positions, gains, losses, gain)
        assert reading == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_a_run_is_read_by_its_steps_from_the_base_that_lost_nothing():
    """Gain and loss of a run are parabolas of the step; at step 0 both are 0."""
    steps = (0, 10, 20, 40)
    gains = [0.02 * step - 0.0002 * step**2 for step in steps]
    losses = [0.001 * step + 0.0001 * step**2 for step in steps]
    reading = loss_at_gain(steps, gains, losses, 0.02 * 5 - 0.0002 * 25)
    assert reading == pytest.approx((0.001 * 5 + 0.0001 * 25, 5))


def test_of_several_crossings_the_smallest_loss_counts():
    loss, rate = read(TURNING, 0.55)
    assert rate < 2e-4  # and not between 2e-4 and 8e-4, where 0.55 is crossed again
    assert 0.1 < loss < 0.4


def test_a_loss_near_zero_does_not_bend_the_curve_away():
    """The logarithm of a far point that lost nothing would give more than both neighbours."""
    loss, _ = read([(5e-4, 0.30, 1e-6), (1e-3, 0.40, 0.02), (2e-3, 0.48, 0.06)], 0.44)
    assert 0.02 < loss < 0.06
