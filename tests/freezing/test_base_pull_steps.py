"""The pull and its optimizer's steps: within others, skipped, raised, and what it cannot follow."""

from pathlib import Path

import pytest
import torch
from forked_ranks import run_ranks
from frozen_reference import TinyLM, adamw, loss_of, steps_of_batches
from pull_reference import STRENGTH, close, everywhere, plain_loop, train
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from freezetrain.errors import CheckError, UserError
from freezetrain.freezing import pull


class Twice(torch.optim.AdamW):
    """A class whose step calls that of its parent, hooks and all."""

    def step(self, closure=None):
        return super().step(closure)


def test_once_a_step_where_steps_run_within_one_another():
    model = TinyLM()
    optimizer = Twice(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    pull(model, optimizer, STRENGTH)
    weights = train(model, optimizer)
    expected = plain_loop(everywhere(STRENGTH))
    assert all(torch.allclose(weights[n], expected[n], 1e-6, 1e-9) for n in expected)


class Shrinks(Optimizer):
    """Around another, after whose step it takes a tenth off every weight."""

    def __init__(self, optimizer):
        super().__init__(optimizer.param_groups, {})
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups

    @torch.no_grad()
    def step(self, closure=None):
        self.optimizer.step()
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(0.9)


def test_after_the_outermost_of_steps_within_one_another():
    def build(model):
        return Shrinks(torch.optim.SGD(model.parameters(), lr=0.5))

    model = TinyLM()
    optimizer = build(model)
    pull(model, optimizer, 0.4)
    weights = train(model, optimizer)
    plain = TinyLM()
    base = {name: value.detach().clone() for name, value in plain.named_parameters()}

    @torch.no_grad()
    def back():
        for name, parameter in plain.named_parameters():
            parameter -= 0.2 * (parameter - base[name])

    assert close(weights, train(plain, build(plain), back))


def test_once_a_step_after_one_that_raised():
    model = TinyLM()
    optimizer = Twice(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    pull(model, optimizer, STRENGTH)

    def fail():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(fail)
    weights = train(model, optimizer)
    expected = plain_loop(everywhere(STRENGTH))
    assert all(torch.allclose(weights[n], expected[n], 1e-6, 1e-9) for n in expected)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_a_step_that_loss_scaling_skips_pulls_nothing(fused, clip):
    """Of a fused optimizer the scaler calls the step, which leaves the weights alone."""
    model, plain = TinyLM().float(), TinyLM().float()
    base = {name: value.detach() + 1 for name, value in plain.named_parameters()}
    optimizer, reference = (
        adamw(m.parameters(), foreach=None, fused=fused) for m in (model, plain)
    )
    pull(model, optimizer, STRENGTH, base=base)
    scaler = torch.amp.GradScaler("cpu", 2.0**4)
    skipped = []
    for number, batches in enumerate(steps_of_batches(5)):
        spoilt = number in (0, 3)
        before = model.up.weight.detach().clone()
        loss = sum(loss_of(model(ids), ids) for ids in batches) / len(batches)
        scaler.scale(loss).backward()
        if spoilt:
            model.down.weight.grad[1, 2] = torch.inf
        if clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        skipped.append(torch.equal(model.up.weight, before))
        if spoilt:
            continue
        (sum(loss_of(plain(ids), ids) for ids in batches) / len(batches)).backward()
        if clip:
            nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        reference.step()
        reference.zero_grad()
        with torch.no_grad():
            for name, parameter in plain.named_parameters():
                parameter -= 0.2 * (parameter - base[name])
    assert skipped == [True, False, False, True, False]
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter, rtol=1e-5, atol=1e-5)


def test_only_what_the_optimizer_trains_is_pulled():
    model = TinyLM()
    others = adamw([model.up.weight])
    with pull(
        model, adamw([p for p in model.parameters() if p is not model.up.weight]), 1.0
    ) as held:
        assert held.count == sum(p.numel() for p in model.parameters()) - model.up.weight.numel()
        assert "up.weight" not in held.distances()
    with pull(model, others, 1.0) as held:
        assert held.distances().keys() == {"up.weight"}


class Replaces(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        self.param_groups[0]["params"] = [p.clone() for p in self.param_groups[0]["params"]]


def test_a_parameter_that_the_optimizer_has_replaced_is_not_lost_in_silence():
    model = TinyLM()
    optimizer = Replaces(model.parameters(), lr=0.1)
    pull(model, optimizer, 1.0)
    with pytest.raises(CheckError, match=r"embedding\.weight was replaced .* in Replaces since"):
        train(model, optimizer)


class OwnMasters(torch.optim.SGD):
    """Steps copies in fp32, as apex does, and rounds them to the weights."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            master = self.state[p].setdefault("master", p.detach().float())
            p.copy_(master.sub_(p.grad.float(), alpha=0.1))


def test_masters_that_an_optimizer_keeps_are_refused_as_its_step_ends():
    model = TinyLM().bfloat16()
    optimizer = OwnMasters(model.parameters())
    pull(model, optimizer, 1.0)
    with pytest.raises(UserError, match=r"OwnMasters keeps a copy of .* as state 'master'"):
        train(model, optimizer)


def test_no_base_and_an_optimizer_that_counts_no_steps_but_has_made_some():
    model = TinyLM()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, steps=1)
    with pytest.raises(UserError, match="SGD has stepped before"):
        pull(model, optimizer, 1.0)


def test_an_optimizer_without_a_learning_rate_is_refused():
    model = TinyLM()
    optimizer = adamw(model.parameters())
    optimizer.param_groups[0]["lr"] = None  # as Adafactor's that finds its own
    with pytest.raises(UserError, match="AdamW has lr=None in a group of its parameters"):
        pull(model, optimizer, 1.0)


def test_what_a_freeze_is_refused_under_so_is_a_pull():
    model = TinyLM()
    sharded = type("ZeroRedundancyOptimizer", (), {})()
    with pytest.raises(UserError, match=r"^cannot pull under ZeroRedundancyOptimizer: it splits"):
        pull(model, sharded, 1.0)
    flattened = type("FullyShardedDataParallel", (nn.Sequential,), {})(model)
    with pytest.raises(UserError, match=r"^cannot pull under FullyShardedDataParallel.*use FSDP2"):
        pull(flattened, adamw(model.parameters()), 1.0)
    optimizer = adamw(model.parameters())
    with pytest.raises(UserError, match="nothing to pull: no parameter of the model needs"):
        pull(model.requires_grad_(False), optimizer, 1.0)


def pull_to(rank: int, world: int, folder: Path) -> str:
    model = DistributedDataParallel(TinyLM().float())
    with pytest.raises(UserError) as raised:
        pull(model, adamw(model.parameters()), 1.0, base=folder / str(rank))
    return str(raised.value)


def test_a_base_that_one_rank_lacks_is_refused_on_all(tmp_path):
    weights = {name: value.detach() for name, value in TinyLM().float().named_parameters()}
    (tmp_path / "0").mkdir()
    save_file(weights, tmp_path / "0" / "model.safetensors")
    for complaint in run_ranks(pull_to, tmp_path):
        assert "there is none at" in complaint
