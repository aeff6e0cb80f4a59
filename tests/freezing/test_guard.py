"""The step guard: what would move without it, and steps that break or nest."""

import pytest
import torch
from frozen_reference import (
    TinyLM,
    adamw,
    loss_of,
    mixed_region,
    steps_of_batches,
    train,
    whole_shards,
)

from freezetrain.errors import CheckError, UserError
from freezetrain.freezing import freeze
from freezetrain.freezing.hooks import GradientMask, StepGuard, in_step
from freezetrain.regions import Region


def test_without_the_guard_weight_decay_moves_frozen_entries() -> None:
    model = TinyLM()
    shards = whole_shards(model, mixed_region(model))
    before = [shard.read() for shard in shards]
    GradientMask(shards)
    train(model, list(model.parameters()), adamw(model.parameters()), steps_of_batches())
    for shard, values in zip(shards, before, strict=True):
        # Only the decay of 6 steps: each is a factor of 1 - lr * weight_decay.
        torch.testing.assert_close(shard.read(), values * (1 - 1e-3) ** 6, rtol=1e-12, atol=0)


class Decay(torch.optim.Optimizer):
    """Multiplies every weight, and may raise before its step is over."""

    breaks = False

    def __init__(self, parameters) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(0.9)
        if self.breaks:
            raise RuntimeError("out of memory")


class DecayTwice(Decay):
    def step(self, closure=None):
        super().step()
        super().step()
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.mul_(0.9)


@pytest.mark.parametrize("kind", [Decay, DecayTwice])
def test_step_that_raises_half_way_is_put_back(kind: type[Decay]) -> None:
    model, start = TinyLM(), TinyLM().up.weight
    region = Region.rows(model, {"up.weight": [1]})
    optimizer = kind(model.parameters())
    handle = freeze(model, optimizer, region)
    optimizer.breaks = True
    for chance in (optimizer.step, handle.verify, handle.remove):
        optimizer.breaks = True
        with pytest.raises(RuntimeError, match="out of memory"):
            optimizer.step()
        assert not torch.equal(model.up.weight[1], start[1])
        optimizer.breaks = False
        chance()
        assert torch.equal(model.up.weight[1], start[1])
        assert not torch.equal(model.up.weight[0], start[0])


def test_step_that_calls_the_step_of_its_base_class() -> None:
    model, start = TinyLM(), TinyLM().up.weight
    Decay(model.parameters())  # from now on its step runs hooks of its own
    optimizer = DecayTwice(model.parameters())
    freeze(model, optimizer, Region.rows(model, {"up.weight": [1]}))
    for _ in range(2):
        optimizer.step()
    assert torch.equal(model.up.weight[1], start[1])
    torch.testing.assert_close(model.up.weight[0], start[0] * 0.9**6)


def test_step_whose_inner_step_raises_and_is_taken_again() -> None:
    """By an optimizer around it, which goes on as if nothing had been."""

    class Retries(torch.optim.Optimizer):
        def __init__(self, optimizer: Decay) -> None:
            super().__init__(optimizer.param_groups, {})
            self.optimizer = optimizer

        def step(self, closure=None) -> None:
            self.optimizer.breaks = True
            with pytest.raises(RuntimeError, match="out of memory"):
                self.optimizer.step()
            self.optimizer.breaks = False
            self.optimizer.step()

    model, start = TinyLM(), TinyLM().up.weight
    region = Region.rows(model, {"up.weight": [1]})
    optimizer = Retries(Decay(model.parameters()))
    with freeze(model, optimizer, region, audit_every=1):
        for _ in range(2):
            optimizer.step()
            assert torch.equal(model.up.weight[1], start[1])
    torch.testing.assert_close(model.up.weight[0], start[0] * 0.9**4)


def test_a_step_that_calls_itself_is_an_error() -> None:
    class Again(torch.optim.Optimizer):
        def __init__(self, parameters) -> None:
            super().__init__(parameters, {})

        def step(self, closure=None, again=True) -> None:
            if again:
                self.step(again=False)
            with torch.no_grad():
                self.param_groups[0]["params"][0].mul_(0.9)

    model = TinyLM()
    optimizer = Again([model.up.weight])
    freeze(model, optimizer, Region.rows(model, {"up.weight": [1]}))
    with pytest.raises(UserError, match="a step of Again ended whose frozen entries are no longer"):
        optimizer.step()


def test_checkpoint_loaded_between_steps_is_what_stays_frozen() -> None:
    model, other = TinyLM(), TinyLM(seed=1)
    region, optimizer = mixed_region(model), adamw(model.parameters())
    handle = freeze(model, optimizer, region)
    train(model, list(model.parameters()), optimizer, steps_of_batches(2))
    model.load_state_dict(other.state_dict())
    train(model, list(model.parameters()), optimizer, steps_of_batches(2))
    for frozen in region.resolve(model):
        start = other.get_parameter(frozen.name)
        assert torch.equal(frozen.entries.read(frozen.parameter), frozen.entries.read(start))
    with pytest.raises(CheckError, match=r"embedding\.weight\[\d+\] is frozen and changed from"):
        handle.verify()


def test_an_optimizer_around_another_is_guarded_too() -> None:
    class Decaying(torch.optim.Optimizer):
        """Decays weights after the step of the optimizer that it holds."""

        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            super().__init__(optimizer.param_groups, {})
            self.optimizer = optimizer

        @torch.no_grad()
        def step(self, closure=None) -> None:
            self.optimizer.step()
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(0.9)

    model = TinyLM()
    region = mixed_region(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    outer = Decaying(adamw(model.parameters()))
    handle = freeze(model, outer, region)
    train(model, list(model.parameters()), outer, steps_of_batches(2))
    assert handle.verify() == handle.count
    for name, mask in region.masks().items():
        now = model.get_parameter(name)
        assert torch.equal(now[mask], before[name][mask])
        assert mask.all() or not torch.equal(now, before[name])


def test_an_optimizer_without_any_of_the_regions_parameters_is_refused() -> None:
    teacher, student = TinyLM().requires_grad_(False), TinyLM()
    with pytest.raises(UserError, match="holds none of the region's parameters"):
        freeze(teacher, adamw(student.parameters()), mixed_region(teacher))


def partitions() -> tuple[TinyLM, Region, torch.optim.Optimizer]:
    model = TinyLM()
    region = Region.rows(model, {"up.weight": [1], "down.weight": [2], "embedding.weight": [3]})
    return model, region, Decay([model.up.weight, model.down.weight])


def test_only_what_the_optimizer_holds_now_can_be_moved_by_its_step() -> None:
    model, region, optimizer = partitions()
    shards = whole_shards(model, region)
    names = [shard.name for shard in in_step(optimizer, shards)]
    assert names == ["up.weight", "down.weight"]
    optimizer.param_groups[0]["params"] = [model.embedding.weight]
    assert [shard.name for shard in in_step(optimizer, shards)] == ["embedding.weight"]


def test_a_step_made_of_several_counts_once() -> None:
    """ZeRO-3 with sub-groups lets its optimizer step one flat tensor at a time."""
    model, region, optimizer = partitions()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    shards = whole_shards(model, region)
    guard = StepGuard([optimizer], [optimizer], shards, piecewise=True)
    counts = []
    for _ in range(2):
        for parameter in (model.up.weight, model.down.weight):
            optimizer.param_groups[0]["params"] = [parameter]
            optimizer.step()
            counts.append((guard.step, guard.entered))
    assert counts == [(1, 1), (1, 2), (2, 3), (2, 4)]
    for name, mask in region.masks().items():
        assert torch.equal(model.get_parameter(name)[mask], before[name][mask])
    assert not torch.equal(model.down.weight, before["down.weight"])
    torch.testing.assert_close(model.up.weight[0], before["up.weight"][0] * 0.9**2)


def test_steps_within_one_another_count_once() -> None:
    model, region, _ = partitions()
    Decay(model.parameters())  # from now on its step runs hooks of its own
    optimizer = DecayTwice(model.parameters())
    guard = StepGuard([optimizer], [optimizer], whole_shards(model, region))
    optimizer.step()
    optimizer.step()
    assert (guard.step, guard.entered) == (2, 2)


@pytest.mark.parametrize("kind", [Decay, DecayTwice])
def test_steps_after_one_that_raised_are_audited(kind: type[Decay]) -> None:
    model = TinyLM()
    optimizer = kind(model.parameters())
    freeze(model, optimizer, Region.rows(model, {"up.weight": [1]}), audit_every=1)
    optimizer.breaks = True
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    optimizer.breaks = False
    optimizer.step()
    with torch.no_grad():
        model.up.weight[1] = 2.0
    with pytest.raises(CheckError, match=r"step 3: up\.weight\[6\] .* to 2\.0"):
        optimizer.step()


@pytest.mark.parametrize("kind", [Decay, DecayTwice])
def test_values_loaded_after_a_step_that_raised_and_one_that_did_not_stay(
    kind: type[Decay],
) -> None:
    model = TinyLM()
    optimizer = kind(model.parameters())
    freeze(model, optimizer, Region.rows(model, {"up.weight": [1]}))
    optimizer.breaks = True
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    optimizer.breaks = False
    optimizer.step()
    with torch.no_grad():
        model.up.weight[1] = 2.0
    optimizer.step()
    assert model.up.weight[1].eq(2.0).all()


def test_a_hook_that_was_there_before_sees_frozen_weights() -> None:
    """As of one that keeps an average of the weights."""
    model, region = TinyLM(), mixed_region(TinyLM())
    optimizer = adamw(model.parameters())
    seen = {}

    def average(*_: object) -> None:
        seen.update({name: p.detach().clone() for name, p in model.named_parameters()})

    optimizer.register_step_post_hook(average)
    ((ids,),) = steps_of_batches(1, 1)
    with freeze(model, optimizer, region):
        loss_of(model(ids), ids).backward()
        optimizer.step()
    for name, mask in region.masks().items():
        assert torch.equal(seen[name][mask], TinyLM().get_parameter(name)[mask])
    assert not torch.equal(seen["up.weight"], TinyLM().up.weight)
