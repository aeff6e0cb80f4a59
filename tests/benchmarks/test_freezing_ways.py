"""The competitors freeze what they say, and fail where their authors' ways are known to fail."""

import pytest
import torch
from torch import nn

from benchmarks.freezing_ways import dense_hook, masked_fill_hook, no_freezing, restore

HOOKS = [dense_hook, masked_fill_hook]


def made():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    masks = {
        name: torch.rand(model.get_parameter(name).shape) < 0.3 for name in ("0.weight", "2.weight")
    }
    return model, masks


def trained(model, masks, way, optimizer, by_hand=False, steps=4, micro=2):
    """The gradients that the last step saw."""
    after = way(model, masks)
    source = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        for number in range(micro):
            model(torch.randn(7, 6, generator=source)).square().sum().backward()
            if by_hand:
                for name, mask in masks.items():
                    model.get_parameter(name).grad[mask] = 0
            if number == micro - 1:
                optimizer.step()
            after()
    return {name: model.get_parameter(name).grad for name in masks}


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=1e-2)


def moved(model, start, masks, frozen):
    """Whether any entry in the masks, or out of them, differs from the start."""
    return any(
        not torch.equal(model.get_parameter(name)[mask == frozen], start[name][mask == frozen])
        for name, mask in masks.items()
    )


@pytest.mark.parametrize("way", HOOKS)
@pytest.mark.parametrize("build", [sgd, adamw])
def test_hooks_train_as_with_gradients_zeroed_by_hand(way, build):
    model, masks = made()
    gradients = trained(model, masks, way, build(model))
    reference, _ = made()
    trained(reference, masks, no_freezing, build(reference), by_hand=True)
    for name, mask in masks.items():
        assert not gradients[name][mask].any()
        assert gradients[name][~mask].all()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("way", HOOKS)
def test_hooks_freeze_without_decay_and_not_with_it(way):
    for build, moves in ((sgd, False), (adamw, True)):
        model, masks = made()
        start = {name: model.get_parameter(name).detach().clone() for name in masks}
        trained(model, masks, way, build(model))
        assert moved(model, start, masks, frozen=True) is moves
        assert moved(model, start, masks, frozen=False)


def test_restore_puts_values_back_and_leaves_gradients():
    model, masks = made()
    start = {name: model.get_parameter(name).detach().clone() for name in masks}
    gradients = trained(model, masks, restore, adamw(model))
    assert not moved(model, start, masks, frozen=True)
    assert moved(model, start, masks, frozen=False)
    for name, mask in masks.items():  # so that they count in the norm that clipping takes
        assert gradients[name][mask].all()


def test_restore_touches_no_trainable_entry():
    model, masks = made()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    after = restore(model, masks)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    after()
    for name, parameter in model.named_parameters():
        mask = masks.get(name, torch.zeros_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter[mask], before[name][mask])
        assert torch.equal(parameter[~mask], before[name][~mask] + 1)


def test_no_freezing_moves_all():
    model, masks = made()
    start = {name: model.get_parameter(name).detach().clone() for name in masks}
    trained(model, masks, no_freezing, sgd(model))
    assert moved(model, start, masks, frozen=True)
