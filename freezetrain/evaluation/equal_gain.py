"""Loss at equal gain: what the held-out languages had lost where the target had gained so much.

Models that learn more of the target language also forget more, so two ways to train are compared
at the same gain. Each way is a curve of (gain, loss) points in order of a position: the logarithm
of the learning rate over several runs, or the optimizer step within one run.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class AtGain(NamedTuple):
    """A point of a curve; the smaller loss sorts first."""

    loss: float
    position: float


def loss_at_gain(
    positions: Sequence[float], gains: Sequence[float], losses: Sequence[float], gain: float
) -> AtGain | None:
    """Loss and position at which a curve has ``gain``; None where it never has it.

    ``positions`` [points] ascend; ``gains`` and ``losses`` [points] are in one unit, nats per byte.
    Between neighbouring points i and i + 1, with s = (x - x_i) / (x_{i+1} - x_i), the gain is

        (1 - s) P(x; i - 1, i, i + 1) + s P(x; i, i + 1, i + 2),

    P the parabola through three points (parabolic blending: Overhauser 1968, "Analytic definition
    of curves and surfaces by parabolic blending"). At an end of the curve only one of the two is
    there, and a curve of two points is a straight line. The logarithm of the loss is read in the
    same way, or the loss itself where that of point i or i + 1 is not above 0. Nothing is
    extrapolated. Of several crossings, as where a high learning rate turns the curve back, the one
    with the smallest loss counts.
    """
    readings = [
        AtGain(loss, position)
        for position, point_gain, loss in zip(positions, gains, losses, strict=True)
        if point_gain == gain
    ]
    for left in range(len(gains) - 1):
        if (gains[left] - gain) * (gains[left + 1] - gain) < 0:
            near = slice(max(0, left - 1), left + 3)
            readings.append(
                _crossing(positions[near], gains[near], losses[near], min(left, 1), gain)
            )
    return min(readings, default=None)


def _crossing(
    positions: Sequence[float],
    gains: Sequence[float],
    losses: Sequence[float],
    left: int,
    gain: float,
) -> AtGain:
    """Where the curve has ``gain`` between points ``left`` and ``left + 1``."""
    low, high = positions[left], positions[left + 1]
    rising = gains[left + 1] > gains[left]
    for _ in range(60):  # halved until floats cannot tell
        middle = (low + high) / 2
        below = _interpolated(positions, gains, left, middle) < gain
        low, high = (middle, high) if below == rising else (low, middle)
    position = (low + high) / 2
    smaller = min(losses[left : left + 2])
    if smaller <= 0:
        return AtGain(_interpolated(positions, losses, left, position), position)
    # The logarithm of a loss next to nothing would bend the parabola without end.
    kept = [point for point, loss in enumerate(losses) if loss > smaller / 20]
    log_losses = [math.log(losses[point]) for point in kept]
    log_loss = _interpolated(
        [positions[point] for point in kept], log_losses, kept.index(left), position
    )
    return AtGain(math.exp(log_loss), position)


def _interpolated(
    positions: Sequence[float], values: Sequence[float], left: int, position: float
) -> float:
    """The curve of ``values`` at ``position``, between points ``left`` and ``left + 1``."""
    second_weight = (position - positions[left]) / (positions[left + 1] - positions[left])
    if left == 0:
        second_weight = 1.0
    elif left + 2 == len(positions):
        second_weight = 0.0
    first, second = slice(max(0, left - 1), left + 2), slice(left, left + 3)
    return (1 - second_weight) * _polynomial(
        positions[first], values[first], position
    ) + second_weight * _polynomial(positions[second], values[second], position)


def _polynomial(positions: Sequence[float], values: Sequence[float], position: float) -> float:
    """The polynomial of lowest degree through all points (Lagrange), at ``position``."""
    return sum(
        value * math.prod((position - other) / (own - other) for other in positions if other != own)
        for own, value in zip(positions, values, strict=True)
    )
