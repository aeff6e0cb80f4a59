"""Optimizers that replace parameters or hide their step: guarded, refused by name, or caught."""

import types
from collections.abc import Callable

import pytest
import torch
from frozen_reference import TinyLM, adamw, loss_of, mixed_region, steps_of_batches
from torch import Tensor, nn
from torch.optim import Optimizer

from freezetrain.errors import CheckError, UserError
from freezetrain.freezing import freeze


class Decays(Optimizer):
    """Moves every weight, gradient or not."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for number, parameter in enumerate(group["params"]):
                self.move(group["params"], number, parameter * 0.9)

    def move(self, held: list[nn.Parameter], number: int, new: Tensor) -> None:
        held[number].copy_(new)


class NewData(Decays):
    def move(self, held, number, new) -> None:
        held[number].data = new


class NewMemory(Decays):
    def move(self, held, number, new) -> None:
        held[number].set_(new)


class NewParameters(Decays):
    """Replaces parameters in its groups and in the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters())
        self.model = model

    def move(self, held, number, new) -> None:
        old, held[number] = held[number], nn.Parameter(new)
        for module in self.model.modules():
            for name, parameter in module._parameters.items():
                if parameter is old:
                    module._parameters[name] = held[number]


class LateMasters(Decays):
    """Swaps the parameters for copies of its own in its first step, as apex does."""

    def step(self, closure=None) -> None:
        if not hasattr(self, "model"):
            self.model = self.param_groups[0]["params"]
            self.param_groups[0]["params"] = [p.detach().clone() for p in self.model]
        super().step()
        with torch.no_grad():
            for parameter, master in zip(self.model, self.param_groups[0]["params"], strict=True):
                parameter.copy_(master)


class Uninitialized(Optimizer):
    """Never calls Optimizer.__init__, so that its step runs no hooks."""

    def __init__(self, parameters) -> None:
        self.param_groups = [{"params": list(parameters)}]
        self.state, self.defaults = {}, {}

    def step(self, closure=None) -> None:
        pass


class UninitializedAdamW(torch.optim.AdamW):
    """Inherits a step that runs hooks, and has no place for them."""

    def __init__(self, parameters) -> None:
        self.param_groups = [{"params": list(parameters)}]
        self.state, self.defaults = {}, {}


def one_step(model: nn.Module, step: Callable[[], object]) -> None:
    ((batch,),) = steps_of_batches(1, 1)
    model.zero_grad()
    loss_of(model(batch), batch).backward()
    step()


@pytest.mark.parametrize("kind", [Decays, NewData, NewMemory])
def test_new_memory_of_a_parameter_is_guarded(kind: type[Decays]) -> None:
    model, start = TinyLM(), TinyLM()
    region, optimizer = mixed_region(model), kind(model.parameters())
    with freeze(model, optimizer, region, audit_every=1):
        for _ in range(3):
            one_step(model, optimizer.step)
    masks = region.masks()
    for name, parameter in model.named_parameters():
        before = start.get_parameter(name).detach()
        frozen = masks.get(name, torch.zeros_like(before, dtype=torch.bool))
        assert torch.equal(parameter[frozen], before[frozen])
        torch.testing.assert_close(parameter[~frozen].detach(), before[~frozen] * 0.9**3)


@pytest.mark.parametrize("every", [1, 2])
def test_new_parameters_are_caught_by_the_next_audit(every: int) -> None:
    model = TinyLM()
    optimizer = NewParameters(model)
    handle = freeze(model, optimizer, mixed_region(model), audit_every=every)
    one_step(model, optimizer.step)
    with pytest.raises(CheckError, match=r"step 2: embedding\.weight was replaced"):
        one_step(model, optimizer.step)
    with pytest.raises(CheckError, match=r"embedding\.weight was replaced"):
        handle.verify()


def test_masters_that_the_optimizer_makes_later_are_caught_by_the_next_audit() -> None:
    model = TinyLM()
    optimizer = LateMasters(model.parameters())
    freeze(model, optimizer, mixed_region(model), audit_every=1)
    one_step(model, optimizer.step)  # guarded: it held the parameters as the step began
    one_step(model, optimizer.step)
    with pytest.raises(CheckError, match=r"embedding\.weight\[\d+\] is frozen and changed"):
        one_step(model, optimizer.step)


def test_masters_that_the_optimizer_has_already_are_refused() -> None:
    model = TinyLM()
    optimizer = LateMasters(model.parameters())
    optimizer.step()
    with pytest.raises(UserError, match="holds none of the region's parameters"):
        freeze(model, optimizer, mixed_region(model))


def test_a_step_without_hooks_is_refused_by_name() -> None:
    model = TinyLM()
    optimizer = Uninitialized(model.parameters())
    with pytest.raises(UserError, match="cannot freeze under Uninitialized: its step does not run"):
        freeze(model, optimizer, mixed_region(model))


def test_an_optimizer_without_hooks_is_refused_by_name() -> None:
    model = TinyLM()
    adamw(model.parameters())  # from now on the class's step runs hooks
    optimizer = UninitializedAdamW(model.parameters())
    with pytest.raises(UserError, match="cannot freeze under UninitializedAdamW"):
        freeze(model, optimizer, mixed_region(model))


def decay(optimizer: Optimizer) -> None:
    with torch.no_grad():
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.mul_(0.9)


def hidden_before(optimizer: Optimizer) -> Callable[[], object]:
    optimizer.step = types.MethodType(decay, optimizer)
    return optimizer.step


@pytest.mark.parametrize(
    "hide", [hidden_before, lambda optimizer: lambda: decay(optimizer)], ids=["replaced", "another"]
)
def test_a_step_that_goes_round_the_classs_is_caught_by_verify(hide) -> None:
    """No hook runs, so no audit does."""
    model = TinyLM()
    optimizer = adamw(model.parameters())
    step = hide(optimizer)
    handle = freeze(model, optimizer, mixed_region(model), audit_every=1)
    one_step(model, step)
    with pytest.raises(CheckError, match=r"step 0: embedding\.weight\[\d+\] is frozen and changed"):
        handle.verify()


def test_a_step_that_is_hidden_later_is_caught_by_the_next_audit_or_verify() -> None:
    model = TinyLM()
    optimizer = adamw(model.parameters())
    handle = freeze(model, optimizer, mixed_region(model), audit_every=1)
    one_step(model, optimizer.step)
    one_step(model, lambda: decay(optimizer))
    with pytest.raises(CheckError, match=r"step 1: embedding\.weight\[\d+\] is frozen and changed"):
        handle.verify()
    with pytest.raises(CheckError, match=r"step 2: embedding\.weight\[\d+\] is frozen and changed"):
        one_step(model, optimizer.step)


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization as it is commonly written: a base optimizer does the step."""

    def __init__(self, parameters, base: type[torch.optim.Optimizer], **options) -> None:
        super().__init__(parameters, options)
        self.base_optimizer = base(self.param_groups, **options)

    @torch.no_grad()
    def first_step(self) -> None:
        norm = torch.stack([p.grad.norm() for p in self.param_groups[0]["params"]]).norm()
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["before"] = parameter.clone()
            parameter.add_(parameter.grad * (0.05 / norm))

    @torch.no_grad()
    def second_step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.copy_(self.state[parameter]["before"])
        self.base_optimizer.step()


def test_sam_is_guarded_in_its_base_optimizer() -> None:
    model, region = TinyLM(), mixed_region(TinyLM())
    optimizer = SAM(list(model.parameters()), torch.optim.AdamW, lr=0.1, weight_decay=0.5)
    start = [(frozen, frozen.parameter.detach().clone()) for frozen in region.resolve(model)]
    ((ids,),) = steps_of_batches(1, 1)
    with freeze(model, optimizer, region, audit_every=1):
        for _ in range(3):
            for step in (optimizer.first_step, optimizer.second_step):
                optimizer.zero_grad()
                loss_of(model(ids), ids).backward()
                step()
    for frozen, before in start:
        mask = frozen.entries.mask()
        assert torch.equal(frozen.parameter[mask], before[mask])
        assert mask.all() or not torch.equal(frozen.parameter, before)


class OwnMasters(torch.optim.Optimizer):
    """Steps fp32 masters that it keeps in its state, as apex does with ``master_weights``."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            master = state.setdefault("master", parameter.float())
            state["average"] = parameter.grad.float()  # wider, too, and no master
            master.mul_(0.999).sub_(parameter.grad.float(), alpha=1e-3)
            parameter.copy_(master)


def test_masters_in_the_optimizers_state_are_found_after_the_first_step() -> None:
    model = TinyLM().bfloat16()
    optimizer = OwnMasters(list(model.parameters()))
    handle = freeze(model, optimizer, mixed_region(model))
    one_step(model, optimizer.step)
    with pytest.raises(CheckError, match=r"step 2: OwnMasters keeps a copy .* as state 'master'"):
        one_step(model, optimizer.step)
    with pytest.raises(CheckError, match="OwnMasters keeps a copy"):
        handle.verify()
