"""The freeze under optimizers whose update of one entry depends on the whole tensor."""

import numpy as np
import torch
from frozen_reference import (
    MAX_NORM,
    Constants,
    TinyLM,
    assert_same_training,
    loss_of,
    mixed_region,
    steps_of_batches,
    train,
)

from freezetrain.freezing import freeze
from freezetrain.regions import Region


def test_muon_trains_as_if_gradients_of_frozen_entries_were_zero() -> None:
    """Its update mixes all entries, so it moves even entries whose gradient is zero."""
    model, steps = TinyLM(), steps_of_batches()
    names = ["up.weight", "down.weight"]
    region = Region.random(model, 0.3, seed=0, parameters=names)

    def build(parameters):
        return torch.optim.Muon(parameters, lr=1e-2, weight_decay=0.1)

    # torch.where: its update depends on the shape, and on no value of a frozen entry.
    reference = Constants(TinyLM(), region, flat=False)
    free = [reference.free[name] for name in names]
    train(reference, free, build(free), steps)
    held = [model.get_parameter(name) for name in names]
    optimizer = build(held)
    with freeze(model, optimizer, region):
        train(model, held, optimizer, steps)
    for name in names:
        mask = reference.masks[name]
        assert torch.equal(model.get_parameter(name)[mask], reference.constants[name][mask])
        torch.testing.assert_close(
            model.get_parameter(name), reference.weights()[name], rtol=1e-9, atol=1e-11
        )
        # Without the guard it would have moved them.
        assert not torch.equal(reference.free[name][mask], reference.constants[name][mask])


def test_adafactor_against_numpy() -> None:
    """Adafactor (Shazeer & Stern, arXiv 1804.04235, as torch defines it) in plain numpy.

    Frozen entries are never updated. Their gradients are the zeros that ``torch.where`` gives,
    and take part in the row and column means; the RMS of the parameter is that of the whole
    tensor, constants included: nothing is decayed there that could leak into it.
    """
    model, steps = TinyLM(), steps_of_batches()
    region = mixed_region(model)
    lr, decay, options = 5e-2, 0.1, {"beta2_decay": -0.8, "eps": (None, 1e-3), "d": 1.0}
    reference = Constants(TinyLM(), region, flat=False)
    state: dict[str, list[np.ndarray]] = {}
    for step, batches in enumerate(steps, start=1):
        for input_ids in batches:
            (loss_of(reference(input_ids), input_ids) / len(batches)).backward()
        gradients = {name: value.grad.numpy() for name, value in reference.free.items()}
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        for name, value in reference.free.items():
            # clip_grad_norm_ adds 1e-6 to the norm.
            gradient = gradients[name] * min(1.0, MAX_NORM / (norm + 1e-6))
            weight, trainable = value.detach().numpy(), ~reference.masks[name].numpy()
            new = _adafactor(weight, gradient, state.setdefault(name, []), step, lr, decay)
            weight[trainable] = new[trainable]
            value.grad = None

    optimizer = torch.optim.Adafactor(model.parameters(), lr=lr, weight_decay=decay, **options)
    with freeze(model, optimizer, region):
        train(model, list(model.parameters()), optimizer, steps)
    assert_same_training(model, reference)


def _adafactor(
    weight: np.ndarray,
    gradient: np.ndarray,
    state: list[np.ndarray],
    step: int,
    lr: float,
    decay: float,
) -> np.ndarray:
    """One update; ``state`` holds row and column means of squares, of a vector the squares."""
    epsilon = np.finfo(weight.dtype).eps
    share = step**-0.8
    scale = max(1e-3, np.sqrt((weight**2).mean())) * min(lr, step**-0.5)
    squares = gradient**2
    now = [squares.mean(1), squares.mean(0)] if gradient.ndim == 2 else [squares]
    if not state:
        state.extend(np.zeros_like(part) for part in now)
    for old, part in zip(state, now, strict=True):
        old += share * (part - old)
    if gradient.ndim == 2:
        variance = np.outer(state[0], state[1]) / max(state[0].mean(), epsilon)
    else:
        variance = state[0]
    update = gradient / np.sqrt(np.maximum(variance, epsilon**2))
    update /= max(1.0, np.sqrt((update**2).mean()))
    return weight * (1 - lr * decay) - scale * update
