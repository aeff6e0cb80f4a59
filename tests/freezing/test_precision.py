"""Precisions on one device against the same training with frozen entries as constants."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from frozen_reference import (
    MAX_NORM,
    Constants,
    TinyLM,
    adamw,
    loss_of,
    mixed_region,
    steps_of_batches,
)
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from freezetrain.freezing import freeze
from freezetrain.regions import Region

Build = Callable[[list[nn.Parameter]], Optimizer]
BUILDS: dict[str, Build] = {
    "adamw": adamw,
    "adamw fused": partial(adamw, foreach=None, fused=True),
    "sgd momentum l2": partial(torch.optim.SGD, lr=0.5, momentum=0.9, weight_decay=0.1),
}


BUILD_CELLS = [
    pytest.param(build, id=name, marks=() if name == "adamw" else pytest.mark.exhaustive)
    for name, build in BUILDS.items()
]


class Loop:
    """Mixed precision as PyTorch's recipes have it: autocast, loss scaling, clipping."""

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        parameters: list[nn.Parameter],
        optimizer: Optimizer,
        autocast: torch.dtype | None = None,
        scale: float | None = None,
        clip: bool = True,
    ) -> None:
        self.forward, self.parameters, self.optimizer = forward, parameters, optimizer
        self.autocast = partial(
            torch.autocast, "cpu", autocast or torch.bfloat16, enabled=autocast is not None
        )
        options = {"init_scale": scale or 1.0, "growth_interval": 4}
        self.scaler = torch.amp.GradScaler("cpu", enabled=scale is not None, **options)
        self.clip = clip
        self.norms: list[float] = []
        self.skipped: list[bool] = []

    def run(self, steps: list[list[Tensor]]) -> None:
        for batches in steps:
            self.optimizer.zero_grad()
            for input_ids in batches:
                with self.autocast():
                    loss = loss_of(self.forward(input_ids).float(), input_ids) / len(batches)
                self.scaler.scale(loss).backward()
            if self.clip:
                self.scaler.unscale_(self.optimizer)
                self.norms.append(nn.utils.clip_grad_norm_(self.parameters, MAX_NORM).item())
            before, scale = self.parameters[0].detach().clone(), self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.skipped.append(self.scaler.get_scale() < scale)
            assert self.skipped[-1] == torch.equal(self.parameters[0], before)


def assert_same_bits(model: nn.Module, reference: Constants) -> None:
    """Frozen entries as at the start; trainable ones as where ``torch.where`` froze the rest.

    To the last bit, as the reference has the same shapes and the same operations.
    """
    for name, weight in reference.weights().items():
        parameter, mask = model.get_parameter(name), reference.masks[name]
        assert torch.equal(parameter[mask], reference.constants[name][mask]), name
        assert torch.equal(parameter, weight), name
        assert mask.all() or not torch.equal(parameter, reference.constants[name]), name


def compare(
    dtype: torch.dtype, build: Build, steps: int = 8, spoil: Callable | None = None, **options
) -> Loop:
    """Train frozen and as the reference; return the loop of the frozen model."""
    model, plain = TinyLM().to(dtype), TinyLM().to(dtype)
    region = mixed_region(model)
    reference = Constants(plain, region, flat=False)
    # A tensor that is wholly frozen takes part in the reference's optimizer, with zero gradients.
    free = list(reference.free.values())
    expected = Loop(reference, free, build(free), **options)
    optimizer = build(list(model.parameters()))
    found = Loop(model, list(model.parameters()), optimizer, **options)
    if spoil is not None:
        spoil(model, region)
    with freeze(model, optimizer, region, audit_every=1) as handle:
        expected.run(steps_of_batches(steps))
        found.run(steps_of_batches(steps))
        assert handle.verify() == handle.count
    assert_same_bits(model, reference)
    assert found.norms == pytest.approx(expected.norms, rel=1e-6, nan_ok=True)
    assert found.skipped == expected.skipped
    return found


@pytest.mark.parametrize("build", BUILD_CELLS)
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        (torch.float32, None),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, None),
    ],
    ids=["fp32", "bf16 autocast", "bf16 weights"],
)
def test_precisions(build: Build, dtype: torch.dtype, autocast: torch.dtype | None) -> None:
    found = compare(dtype, build, autocast=autocast)
    assert not any(found.skipped)


@pytest.mark.parametrize("build", BUILD_CELLS)
@pytest.mark.parametrize("clip", [True, False], ids=["clipped", "not unscaled"])
def test_fp16_with_loss_scaling_and_skipped_steps(build: Build, clip: bool) -> None:
    """The first scales are too large for fp16, so that the scaler skips steps.

    Without clipping a fused optimizer unscales within its step, and enters those that it skips.
    """
    found = compare(
        torch.float32, build, autocast=torch.float16, scale=2.0**24, clip=clip, steps=12
    )
    assert found.skipped[0]
    assert not found.skipped[-1]
    assert 2 <= sum(found.skipped) <= 9


def test_an_overflow_at_a_frozen_entry_alone_skips_no_step() -> None:
    def spoil(model: nn.Module, region: Region) -> None:
        mask = region.masks()["up.weight"]
        model.up.weight.register_hook(lambda grad: grad.masked_fill(mask, torch.inf))

    found = compare(torch.float32, adamw, autocast=torch.float16, scale=2.0**8, spoil=spoil)
    assert not any(found.skipped)


def test_norms_count_trainable_entries_alone() -> None:
    """Against the plain norm over the trainable entries of unmasked gradients."""
    model, plain = TinyLM().float(), TinyLM().float()
    region = mixed_region(model)
    optimizer = adamw(model.parameters())
    freeze(model, optimizer, region, audit_every=1)
    loop = Loop(model, list(model.parameters()), optimizer, autocast=torch.bfloat16, scale=2.0**4)
    (batches,) = steps_of_batches(1)
    loop.run([batches])
    for input_ids in batches:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(plain(input_ids).float(), input_ids) / len(batches)
        loss.backward()
    masks = region.masks()
    trainable = [
        p.grad[~masks[name]] if name in masks else p.grad.flatten()
        for name, p in plain.named_parameters()
    ]
    assert loop.norms[0] == pytest.approx(torch.cat(trainable).norm().item(), rel=1e-6)
    everything = torch.cat([p.grad.flatten() for p in plain.parameters()]).norm().item()
    assert everything > 1.03 * loop.norms[0]


@pytest.mark.parametrize(
    "compiled",
    [
        pytest.param(False, id="checkpointed"),
        pytest.param(True, id="compiled too", marks=pytest.mark.exhaustive),
    ],
)
def test_checkpointing_and_compilation_under_autocast(compiled: bool) -> None:
    class Checkpointed(TinyLM):
        def forward(self, input_ids: Tensor) -> Tensor:
            hidden = self.embedding(input_ids)
            inner = checkpoint(self.inner, hidden, use_reentrant=False)
            return self.head(self.norm(hidden + inner))

        def inner(self, hidden: Tensor) -> Tensor:
            return self.down(torch.nn.functional.gelu(self.up(hidden)))

    model = Checkpointed().float()
    region = mixed_region(model)
    reference = Constants(TinyLM().float(), region, flat=False)
    free, steps = list(reference.free.values()), steps_of_batches(4)
    expected = Loop(reference, free, adamw(free), autocast=torch.bfloat16)
    expected.run(steps)
    optimizer = adamw(model.parameters())
    forward = torch.compile(model, backend="aot_eager") if compiled else model
    found = Loop(forward, list(model.parameters()), optimizer, autocast=torch.bfloat16)
    with freeze(forward, optimizer, region, audit_every=1):
        found.run(steps)
    if not compiled:
        assert_same_bits(model, reference)
        return
    for name, weight in reference.weights().items():
        parameter, mask = model.get_parameter(name), reference.masks[name]
        assert torch.equal(parameter[mask], reference.constants[name][mask]), name
        torch.testing.assert_close(parameter, weight, rtol=0, atol=2e-3)
    assert found.norms == pytest.approx(expected.norms, rel=0.02)
