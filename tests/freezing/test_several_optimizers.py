"""Several optimizers under one freeze, as lists and containers, against constants."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from frozen_reference import (
    Constants,
    TinyLM,
    adamw,
    assert_same_training,
    mixed_region,
    steps_of_batches,
    train,
)
from torch import nn
from torch.optim import Optimizer

from freezetrain.errors import CheckError, UserError
from freezetrain.freezing import freeze, pull
from freezetrain.regions import Region


class Both:
    """Two optimizers stepped one after the other."""

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


MATRICES = ("up.weight", "down.weight")


def muon_and_adamw(named: dict[str, nn.Parameter]) -> Both:
    """Muon for matrices, AdamW for the rest, the embedding among it."""
    matrices = [named[name] for name in MATRICES]
    rest = [p for name, p in named.items() if name not in MATRICES]
    return Both(torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1), adamw(rest))


class Chained(Optimizer):
    """Holds the groups of several optimizers, which its step steps: as torchtitan's container."""

    def __init__(self, *optimizers: Optimizer) -> None:
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        super().__init__([p for group in groups for p in group["params"]], {})
        self.optimizers = list(optimizers)

    def step(self, closure=None) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


class Hidden(Chained):
    """Keeps them under names that no one knows, and so is the one that holds the tensors."""

    def __init__(self, *optimizers: Optimizer) -> None:
        super().__init__(*optimizers)
        self.first, self.second = self.__dict__.pop("optimizers")

    def step(self, closure=None) -> None:
        self.first.step()
        self.second.step()


GIVEN = {
    "list": lambda both: list(both.optimizers),
    "container without hooks": lambda both: both,
    "names": lambda both: {"muon": both.optimizers[0], "adamw": both.optimizers[1]},
    "wrapped": lambda both: [
        SimpleNamespace(optimizer=optimizer) for optimizer in reversed(both.optimizers)
    ],
    "chained": lambda both: Chained(*both.optimizers),
    "names that no one knows": lambda both: Hidden(*both.optimizers),
    "wrapped chain": lambda both: SimpleNamespace(optimizer=Chained(*both.optimizers)),
}


@pytest.mark.parametrize("give", GIVEN.values(), ids=GIVEN.keys())
def test_several_optimizers_have_one_freeze(give: Callable[[Both], object], tmp_path: Path) -> None:
    model, steps = TinyLM(), steps_of_batches()
    region = mixed_region(model)
    reference = Constants(TinyLM(), region, flat=False)
    train(reference, reference.parameters(), muon_and_adamw(reference.free), steps)

    both = muon_and_adamw(dict(model.named_parameters()))
    given = give(both)
    file = region.save(tmp_path / "region.safetensors")
    handle = freeze(model, given, file, audit_every=1)
    stepped = getattr(given, "optimizer", given)
    norms = train(
        model, list(model.parameters()), stepped if isinstance(stepped, Chained) else both, steps
    )
    assert len(norms) == len(steps)
    assert handle.verify() == handle.count == sum(e.count for e in region.values())
    for frozen in region.resolve(model):
        mask = frozen.entries.mask()
        expected = reference.weights()[frozen.name]
        assert torch.equal(frozen.parameter[mask], reference.constants[frozen.name][mask])
        torch.testing.assert_close(frozen.parameter, expected, rtol=1e-9, atol=1e-11)
        assert not torch.equal(reference.free[frozen.name][mask], expected[mask])  # decayed there
    other = TinyLM()
    one = freeze(other, adamw(other.parameters()), region)
    assert handle.digest == one.digest
    handle.remove()
    model.zero_grad()
    model(steps[0][0]).square().mean().backward()
    both.step()
    assert not torch.equal(model.up.weight, expected)


@pytest.mark.parametrize("give", GIVEN.values(), ids=GIVEN.keys())
def test_several_optimizers_have_one_pull(give: Callable[[Both], object]) -> None:
    """Each at its own learning rate, once a step, whichever way they are held."""
    model, plain, steps = TinyLM(), TinyLM(), steps_of_batches()
    both, reference = (muon_and_adamw(dict(m.named_parameters())) for m in (model, plain))
    for pair in (both, reference):
        pair.optimizers[1].param_groups[0]["lr"] = 3e-3
    given = give(both)
    if isinstance(given, Hidden):
        with pytest.raises(UserError, match="Hidden has lr=None in a group of its parameters"):
            pull(model, given, 20.0)
        return
    base = {name: value.detach() + 1 for name, value in plain.named_parameters()}

    @torch.no_grad()
    def back() -> None:
        for name, value in plain.named_parameters():
            value -= (0.2 if name in MATRICES else 0.06) * (value - base[name])

    train(plain, list(plain.parameters()), reference, steps, after_step=back)
    pull(model, given, 20.0, base=base)
    stepped = getattr(given, "optimizer", given)
    stepped = stepped if isinstance(stepped, Chained) else both
    train(model, list(model.parameters()), stepped, steps)
    for name, value in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), value, rtol=1e-9, atol=1e-11)


def test_each_of_several_optimizers_is_audited_in_each_round_that_is_due() -> None:
    """A gradient that did not come from backward, of a parameter of either, in round 4."""
    for name in ("up.weight", "down.bias"):
        for chained in (False, True):
            model, steps = TinyLM(), steps_of_batches()
            both = muon_and_adamw(dict(model.named_parameters()))
            stepped = Chained(*both.optimizers) if chained else both
            region = Region.tensors(model, [name])
            with freeze(model, stepped, region, audit_every=3):
                train(model, list(model.parameters()), stepped, steps[:3])
                stepped.zero_grad()
                model(steps[3][0]).square().mean().backward()
                model.get_parameter(name).grad.fill_(1.0)
                with pytest.raises(CheckError, match=rf"step 4: the gradient of {name}\[0\]"):
                    stepped.step()


def test_a_step_that_raised_is_put_back_before_another_optimizer_steps() -> None:
    class Fails(torch.optim.SGD):
        fail = False

        def step(self, closure=None) -> None:
            super().step(closure)
            if self.fail:
                with torch.no_grad():
                    model.up.weight.add_(1.0)
                raise RuntimeError("out of memory")

    model, steps = TinyLM(), steps_of_batches()
    named = dict(model.named_parameters())
    first = Fails([named.pop("up.weight")], lr=0.1, weight_decay=0.1)
    region = mixed_region(model)
    before = model.up.weight.detach().clone()
    second = adamw(list(named.values()))
    handle = freeze(model, [first, second], region, audit_every=1)
    mask = region.masks()["up.weight"]
    for first.fail in (False, True):
        train(model, list(model.parameters()), second, steps[:2])
        if first.fail:
            with pytest.raises(RuntimeError, match="out of memory"):
                first.step()
            assert not torch.equal(model.up.weight[mask], before[mask])
        else:
            first.step()
    second.step()
    assert torch.equal(model.up.weight[mask], before[mask])
    model.down.bias.grad = torch.ones_like(model.down.bias)
    with pytest.raises(CheckError, match=r"gradient of down\.bias"):  # still audited
        second.step()
    assert handle.verify() == handle.count


def test_a_parameter_that_two_optimizers_hold_is_frozen_exactly() -> None:
    model, steps = TinyLM(), steps_of_batches()
    region = mixed_region(model)
    reference = Constants(TinyLM(), region)

    def build(parameters: list[nn.Parameter]) -> Both:
        return Both(
            torch.optim.SGD(parameters, lr=0.5, momentum=0.9, weight_decay=0.1), adamw(parameters)
        )

    train(reference, reference.parameters(), build(reference.parameters()), steps)
    both = build(list(model.parameters()))
    with freeze(model, both.optimizers, region, audit_every=1):
        train(model, list(model.parameters()), both, steps)
    assert_same_training(model, reference)


def test_optimizers_that_do_not_hold_the_region_are_refused() -> None:
    model = TinyLM()
    both = muon_and_adamw(dict(model.named_parameters()))
    region = mixed_region(model)
    with pytest.raises(UserError, match=r"is not in the optimizer \(Muon\): pass the optimizer"):
        freeze(model, both.optimizers[:1], region)
    with pytest.raises(UserError, match="expected an optimizer"):
        freeze(model, [], region)
    with pytest.raises(UserError, match=r"optimizers \(Muon and AdamW\) hold none of the region's"):
        freeze(TinyLM(), both.optimizers, region)
    matrices = Region.tensors(model, MATRICES)
    with freeze(model, both.optimizers, matrices):  # one of them may hold nothing of it
        pass
    engine = type("DeepSpeedEngine", (nn.Sequential,), {})(model)
    engine.optimizer = both.optimizers[1]
    with pytest.raises(UserError, match="under DeepSpeed with several optimizers: an engine steps"):
        freeze(engine, both.optimizers, region)
    engine.optimizer = both
    with pytest.raises(UserError, match="under DeepSpeed with several optimizers: an engine steps"):
        freeze(engine, None, region)
    sharded = type("ZeroRedundancyOptimizer", (), {})()
    with pytest.raises(UserError, match="cannot freeze under ZeroRedundancyOptimizer"):
        freeze(model, [both.optimizers[0], sharded], region)
