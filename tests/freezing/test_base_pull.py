"""The pull to the base against a plain loop in fp64, on one device."""

import pytest
import torch
from frozen_reference import TinyLM, adamw, mixed_region
from pull_reference import STRENGTH, close, everywhere, plain_loop, train
from safetensors.torch import save_file
from torch import nn

from freezetrain.errors import UserError
from freezetrain.freezing import freeze, pull
from freezetrain.regions import Region


def test_it_is_the_formula_at_the_learning_rate_of_each_step():
    rate = [1e-2, 5e-3, 2e-2, 1e-3, 0.0].__getitem__
    model = TinyLM()
    optimizer = adamw(model.parameters())
    held = pull(model, optimizer, STRENGTH)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(min(step, 4)) / 1e-2)
    weights = train(model, optimizer, scheduler=scheduler)
    expected = plain_loop(everywhere(STRENGTH), lambda step: rate(min(step, 4)))
    assert close(weights, expected)
    assert not close(weights, plain_loop(everywhere(0.0), lambda step: rate(min(step, 4))))
    moved = sum(((weights[n] - p) ** 2).sum() for n, p in TinyLM().named_parameters())
    size = sum((p**2).sum() for _, p in TinyLM().named_parameters())
    found = held.distances()
    assert found.keys() == {name for name, _ in TinyLM().named_parameters()}
    name = "up.weight"
    base = TinyLM().get_parameter(name).detach()
    assert found[name] == pytest.approx(float((weights[name] - base).norm() / base.norm()))
    assert 0 < moved < size


def test_each_parameter_group_has_its_own_rate():
    def optimizer_of(model):
        slow = [p for name, p in model.named_parameters() if "up" in name]
        fast = [p for name, p in model.named_parameters() if "up" not in name]
        return torch.optim.SGD([{"params": slow, "lr": 1e-3}, {"params": fast, "lr": 1e-1}])

    model = TinyLM()
    optimizer = optimizer_of(model)
    pull(model, optimizer, 5.0)
    weights = train(model, optimizer)
    plain = TinyLM()
    base = {name: value.detach().clone() for name, value in plain.named_parameters()}
    optimizer = optimizer_of(plain)

    @torch.no_grad()
    def back():
        for name, parameter in plain.named_parameters():
            parameter -= (5e-3 if "up" in name else 0.5) * (parameter - base[name])

    assert close(weights, train(plain, optimizer, back))


def test_a_strength_without_end_holds_the_base_bit_for_bit():
    model = TinyLM().float()
    base = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = adamw(model.parameters())
    pull(model, optimizer, 1e30)
    weights = train(model, optimizer)
    assert all(torch.equal(weights[name], base[name]) for name in base)


def test_regions_have_their_own_strength_and_the_largest_counts():
    model = TinyLM()
    weak, strong = mixed_region(model), Region.rows(model, {"up.weight": [1, 4]})
    strengths = {n: torch.full(p.shape, 2.0).double() for n, p in model.named_parameters()}
    for region, strength in ((weak, 10.0), (strong, 50.0)):
        for name, entries in region.items():
            strengths[name][entries.mask()] = strength
    optimizer = adamw(model.parameters())
    pull(model, optimizer, 2.0, regions=[(strong, 50.0), (weak, 10.0)])
    assert close(train(model, optimizer), plain_loop(strengths))


def test_only_regions(tmp_path):
    model = TinyLM()
    region = mixed_region(model)
    region.save(tmp_path / "core.safetensors")
    strengths = {n: torch.zeros(p.shape).double() for n, p in model.named_parameters()}
    for name, entries in region.items():
        strengths[name][entries.mask()] = 30.0
    optimizer = adamw(model.parameters())
    pull(model, optimizer, 0.0, regions={str(tmp_path / "core.safetensors"): 30.0})
    assert close(train(model, optimizer), plain_loop(strengths))


def test_weighed_by_an_importance():
    model = TinyLM()
    torch.manual_seed(3)
    importance = {n: torch.rand(p.shape).double() for n, p in model.named_parameters()}
    del importance["norm.bias"]
    mean = sum(v.sum() for v in importance.values()) / sum(v.numel() for v in importance.values())
    strengths = {n: STRENGTH * v.float() / mean for n, v in importance.items()}
    strengths["norm.bias"] = 0.0
    optimizer = adamw(model.parameters())
    pull(model, optimizer, STRENGTH, importance=importance)
    weights, expected = train(model, optimizer), plain_loop(strengths)
    assert all(torch.allclose(weights[n], expected[n], 1e-6, 1e-9) for n in expected)


@pytest.mark.parametrize("first", ["pull", "freeze"])
def test_beside_a_freeze_frozen_entries_keep_their_bits(first):
    model = TinyLM().float()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    region, optimizer = mixed_region(model), adamw(model.parameters())
    if first == "pull":
        pull(model, optimizer, STRENGTH)
    handle = freeze(model, optimizer, region, clamp=0.25, check_base=False, audit_every=1)
    if first == "freeze":
        pull(model, optimizer, STRENGTH, base=before)
    weights = train(model, optimizer)
    assert handle.verify() == region.count
    for name, entries in region.items():
        assert (weights[name][entries.mask()] == 0.25).all()
        free = ~entries.mask()
        assert not free.any() or not torch.equal(weights[name][free], before[name][free])


def test_the_base_is_what_is_given_not_what_the_weights_are():
    model = TinyLM()
    base = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = adamw(model.parameters())
    held = pull(model, optimizer, STRENGTH)
    train(model, optimizer, steps=3)
    held.remove()
    with pytest.raises(UserError, match=r"AdamW has stepped before.*give base="):
        pull(model, optimizer, STRENGTH)
    with pull(model, optimizer, STRENGTH, base=base):
        weights = train(model, optimizer, steps=2)
    whole = TinyLM()
    optimizer = adamw(whole.parameters())
    pull(whole, optimizer, STRENGTH)
    train(whole, optimizer, steps=3)
    assert close(weights, train(whole, optimizer, steps=2))


def test_under_wrappers_names_are_the_base_s():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = TinyLM()

    module = Module()
    base = {name: value.detach() + 1 for name, value in module.model.named_parameters()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    pull(module, optimizer, 1.0, base=base)
    before = module.model.up.weight.detach().clone()
    module.model.up.weight.grad = torch.zeros_like(before)
    optimizer.step()
    assert torch.allclose(module.model.up.weight, before + 0.5)


def test_a_base_that_is_stored_quantized_is_refused(tmp_path):
    model = TinyLM()
    weights = {name: value.detach().char() for name, value in model.named_parameters()}
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="stored quantized"):
        pull(model, adamw(model.parameters()), 1.0, base=tmp_path)


def test_the_base_is_read_from_a_folder(tmp_path):
    model = TinyLM()
    weights = {name: value.detach() + 1 for name, value in model.named_parameters()}
    save_file(weights, tmp_path / "model.safetensors")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    pull(model, optimizer, 2.0, base=tmp_path)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in model.named_parameters():
        assert torch.equal(value, weights[name])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"strength": -1.0}, "a number, 0 or more, got -1.0"),
        ({"strength": float("nan")}, "got nan"),
        ({"strength": 1.0, "regions": [(None, -2.0)]}, "got -2.0"),
        ({"strength": 1.0, "regions": [(None, 2.0)], "importance": {}}, "give one"),
        ({"strength": 1.0, "base": {"embeding.weight": torch.zeros(1)}}, "did you mean 'embeding"),
        ({"strength": 1.0, "importance": {"up.weight": torch.zeros(10, 6)}}, "mean above 0"),
        ({"strength": 1.0, "importance": {"up.weight": -torch.ones(10, 6)}}, "0 or more, and that"),
    ],
)
def test_what_cannot_be(options, complaint):
    model = TinyLM()
    with pytest.raises(UserError, match=complaint):
        pull(model, adamw(model.parameters()), **options)
