"""Optimizers of many kinds against frozen entries as constants; groups, compiled steps."""

from collections.abc import Callable
from itertools import chain

import numpy as np
import pytest
import torch
from frozen_reference import (
    MAX_NORM,
    Constants,
    TinyLM,
    adamw,
    assert_same_training,
    loss_of,
    mixed_region,
    steps_of_batches,
    train,
)
from torch import Tensor, nn
from torch.optim import Optimizer

from freezetrain.freezing import freeze, pull
from freezetrain.regions import Region

Build = Callable[[list[nn.Parameter]], Optimizer]


class Lion(Optimizer):
    """Chen et al., "Symbolic discovery of optimization algorithms" (arXiv 2302.06675)."""

    def __init__(self, parameters, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    update = momentum.lerp(p.grad, 1 - group["betas"][0]).sign()
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * update)
                    momentum.lerp_(p.grad, 1 - group["betas"][1])


ELEMENTWISE: dict[str, Build] = {
    "adamw": adamw,
    "adamw foreach": lambda p: adamw(p, foreach=True),
    "adamw fused": lambda p: adamw(p, foreach=None, fused=True),
    "adamw amsgrad": lambda p: adamw(p, amsgrad=True),
    "adam l2": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
    "sgd momentum l2": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, weight_decay=0.1),
    "sgd nesterov l2": lambda p: torch.optim.SGD(
        p, lr=0.5, momentum=0.9, weight_decay=0.1, nesterov=True
    ),
    "nadam decoupled": lambda p: torch.optim.NAdam(
        p, lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True
    ),
    "rmsprop l2": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "adagrad l2": lambda p: torch.optim.Adagrad(p, lr=1e-1, weight_decay=0.1),
    "lion": Lion,
    "radam decoupled": lambda p: torch.optim.RAdam(
        p, lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True
    ),
    "nadam l2": lambda p: torch.optim.NAdam(p, lr=1e-2, weight_decay=0.1),
    "adamax l2": lambda p: torch.optim.Adamax(p, lr=1e-2, weight_decay=0.1),
    "adadelta l2": lambda p: torch.optim.Adadelta(p, lr=1.0, weight_decay=0.1),
    "rmsprop centered": lambda p: torch.optim.RMSprop(p, lr=1e-2, centered=True, weight_decay=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
    "adam fused": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1, fused=True),
    "sgd fused": lambda p: torch.optim.SGD(
        p, lr=0.5, momentum=0.9, weight_decay=0.1, nesterov=True, fused=True
    ),
    "sgd foreach": lambda p: torch.optim.SGD(
        p, lr=0.5, momentum=0.9, weight_decay=0.1, foreach=True
    ),
}


@pytest.mark.parametrize("build", ELEMENTWISE.values(), ids=ELEMENTWISE.keys())
@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
def test_trains_as_if_frozen_entries_were_constants(build: Build, closure: bool) -> None:
    model, steps = TinyLM(), steps_of_batches()
    region = mixed_region(model)
    reference = Constants(TinyLM(), region)
    expected = train(reference, reference.parameters(), build(reference.parameters()), steps)

    optimizer = build(list(model.parameters()))
    handle = freeze(model, optimizer, region)
    norms = train(model, list(model.parameters()), optimizer, steps, closure)

    assert_same_training(model, reference)
    # The norm that clipping sees is the norm over trainable entries.
    torch.testing.assert_close(norms, expected, rtol=1e-9, atol=0)
    assert handle.verify() == handle.count == sum(int(m.sum()) for m in reference.masks.values())


def test_lbfgs_trains_as_if_frozen_entries_were_constants() -> None:
    model, steps = TinyLM(), steps_of_batches(steps=3)
    region = mixed_region(model)

    def build(parameters):
        return torch.optim.LBFGS(parameters, lr=0.5, max_iter=4, line_search_fn="strong_wolfe")

    reference = Constants(TinyLM(), region)
    parameters = reference.parameters()
    train(reference, parameters, build(parameters), steps, closure=True)
    optimizer = build(list(model.parameters()))
    with freeze(model, optimizer, region):
        train(model, list(model.parameters()), optimizer, steps, closure=True)
    assert_same_training(model, reference)


PULLED: dict[str, Build] = {
    **ELEMENTWISE,
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=4, line_search_fn="strong_wolfe"),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=5e-2, weight_decay=0.1),
    "muon": lambda p: torch.optim.Muon([q for q in p if q.ndim == 2], lr=1e-2, weight_decay=0.1),
}


@pytest.mark.parametrize(
    ("build", "closure"),
    [
        pytest.param(build, closure, id=f"{name}{', closure' if closure else ''}")
        for name, build in PULLED.items()
        for closure in (False, True)
        if closure or name != "lbfgs"
    ],
)
def test_pulled_as_by_hand(build: Build, closure: bool) -> None:
    """θ ← θ − min(1, η·λ)·(θ − θ₀) after each step, of whatever kind."""
    model, plain, steps = TinyLM(), TinyLM(), steps_of_batches()
    reference, optimizer = build(list(plain.parameters())), build(list(model.parameters()))
    base = {name: value.detach().clone() for name, value in plain.named_parameters()}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    rate = reference.param_groups[0]["lr"]
    pulled = [n for n, p in model.named_parameters() if id(p) in held]

    @torch.no_grad()
    def back() -> None:
        for name in pulled:
            value = plain.get_parameter(name)
            value -= 0.3 * (value - base[name])

    train(plain, list(plain.parameters()), reference, steps, closure, after_step=back)
    with pull(model, optimizer, 0.3 / rate):
        train(model, list(model.parameters()), optimizer, steps, closure)
    for name in pulled:
        value = plain.get_parameter(name)
        torch.testing.assert_close(model.get_parameter(name), value, rtol=1e-9, atol=1e-11)
        assert not torch.equal(value, base[name])


def test_parameter_groups() -> None:
    model, steps = TinyLM(), steps_of_batches()
    region = mixed_region(model)
    reference = Constants(TinyLM(), region)

    def build(named: dict[str, nn.Parameter]) -> Optimizer:
        groups = [{"params": [p for name, p in named.items() if "norm" in name], "lr": 1e-3}]
        optimizer = adamw([*groups, {"params": [named["up.weight"]], "weight_decay": 0.5}])
        held = set(chain.from_iterable(group["params"] for group in optimizer.param_groups))
        optimizer.add_param_group({"params": [p for p in named.values() if p not in held]})
        return optimizer

    free = {name: p for name, p in reference.free.items() if p.numel()}
    train(reference, reference.parameters(), build(free), steps)
    optimizer = build(dict(model.named_parameters()))
    with freeze(model, optimizer, region, audit_every=1):
        train(model, list(model.parameters()), optimizer, steps)
    assert_same_training(model, reference)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
def test_schedulers_and_compiled_steps_replace_the_step_and_still_run_it() -> None:
    model, steps = TinyLM(), steps_of_batches(3)
    region = mixed_region(model)
    reference = Constants(TinyLM(), region)

    def build(parameters) -> Optimizer:
        optimizer = adamw(parameters)
        torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        optimizer.step = torch.compile(optimizer.step, backend="eager")
        return optimizer

    train(reference, reference.parameters(), build(reference.parameters()), steps)
    optimizer = build(model.parameters())
    with freeze(model, optimizer, region, audit_every=1):
        train(model, list(model.parameters()), optimizer, steps)
    assert_same_training(model, reference)


@pytest.mark.parametrize("name", ["AdamW8bit", "PagedAdamW8bit", "Lion8bit", "SGD8bit"])
def test_8_bit_optimizers(name: str) -> None:
    """Their state is quantized in blocks that hold frozen and trainable entries."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 80), nn.GELU(), nn.Linear(80, 64))
    region = Region.random(model, 0.3, seed=0)
    options = {"momentum": 0.9} if name == "SGD8bit" else {}
    optimizer = getattr(bitsandbytes.optim, name)(
        model.parameters(), lr=1e-2, weight_decay=0.1, min_8bit_size=1024, **options
    )
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    with freeze(model, optimizer, region, audit_every=1):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 64)).square().mean().backward()
            optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    assert any(isinstance(v, Tensor) and v.dtype == torch.uint8 for v in states)
    for key, mask in region.masks().items():
        now = model.get_parameter(key)
        assert torch.equal(now[mask], before[key][mask])
        assert not torch.equal(now[~mask], before[key][~mask])


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
