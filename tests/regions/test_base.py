"""The fingerprint tells models apart, and not their dtypes or wrappers."""

import copy

import torch
from torch import nn

from freezetrain.regions import fingerprint


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 30), nn.LayerNorm(30))


def test_same_in_bfloat16_float32_and_float64_and_compiled():
    base = model()
    assert fingerprint(model()) == fingerprint(base)
    assert fingerprint(copy.deepcopy(base).bfloat16()) == fingerprint(base)
    assert fingerprint(copy.deepcopy(base).bfloat16().float()) == fingerprint(base)
    assert fingerprint(copy.deepcopy(base).double()) == fingerprint(base)
    assert fingerprint(torch.compile(base)) == fingerprint(base)


def test_same_for_other_strides():
    base, other = model(), model()
    other[1].weight.data = other[1].weight.data.t().contiguous().t()
    assert fingerprint(other) == fingerprint(base)


def test_differs_for_other_values_shapes_and_names():
    base = model()
    prints = {fingerprint(base), fingerprint(model(seed=1))}
    prints.add(fingerprint(nn.Sequential(*base, nn.Linear(1, 1))))
    prints.add(fingerprint(nn.ModuleDict({"a": base})))
    scaled = model()
    scaled[2].weight.data[0] = 2.0  # one value of a small parameter, of which all are sampled
    prints.add(fingerprint(scaled))
    for shape in [(4, 2), (2, 4), (8,)]:
        flat = nn.Module()
        flat.weight = nn.Parameter(torch.ones(shape))
        prints.add(fingerprint(flat))
    assert len(prints) == 8


def test_whole_parameters_may_come_from_elsewhere():
    """As under an engine that leaves every parameter a piece and gathers it when asked."""
    base, split = model(), model()
    whole = {parameter: parameter.detach().clone() for parameter in split.parameters()}
    for parameter in split.parameters():
        parameter.ds_shape, parameter.data = parameter.shape, parameter.data.flatten()[:3]
    asked = []

    def full(parameter: nn.Parameter) -> torch.Tensor:
        asked.append(parameter)
        return whole[parameter]

    assert fingerprint(split, full) == fingerprint(base)
    assert len(asked) == len(whole)
    assert fingerprint(split) != fingerprint(base)
    with torch.no_grad():
        whole[split[2].bias][4] = 1.0
    assert fingerprint(split, full) != fingerprint(base)


def test_scalars_and_empty_parameters_have_fingerprints():
    module = nn.Module()
    module.scale = nn.Parameter(torch.tensor(1.5))
    module.nothing = nn.Parameter(torch.zeros(0, 3))
    before = fingerprint(module)
    module.scale.data.fill_(2.5)
    assert fingerprint(module) != before
