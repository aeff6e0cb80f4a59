"""Values that entries of a parameter had before the model learnt anything."""

import copy

import torch
from torch import Tensor, nn

from freezetrain.regions.blocks import is_norm
from freezetrain.regions.draw import generator_of
from freezetrain.regions.resolve import Resolved


@torch.no_grad()
def fresh_values(model: nn.Module, target: Resolved, seed: int) -> Tensor:
    """New values [count] for the entries, of the parameter's dtype and device.

    Biases are 0. Weights of norms are what lets through the normed input as it is: 1, or 0 in
    norms that multiply by 1 + weight (Gemma). Everything else is drawn from a normal distribution
    whose standard deviation is the ``initializer_range`` of the model's configuration, as
    transformers initializes weights, or that of the parameter itself where the configuration has
    none. The draw depends on ``seed`` and the parameter's name, and is the same on every machine.
    """
    parameter, count = target.parameter, target.entries.count
    if target.name.endswith("bias"):
        return parameter.new_zeros(count)
    if is_norm(model, target.name):
        return parameter.new_full((count,), _neutral(model, target.name))
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    spread = getattr(config, "initializer_range", None)
    if spread is None:
        spread = parameter.float().std().item()
    drawn = torch.randn(count, generator=generator_of(seed, target.key)) * spread
    return drawn.to(device=parameter.device, dtype=parameter.dtype)


def _neutral(model: nn.Module, name: str) -> float:
    """1 if the norm's output is 0 where its weight is 0, else 0."""
    path, _, leaf = name.rpartition(".")
    norm = copy.deepcopy(model.get_submodule(path)).float()
    for parameter in norm.parameters():  # weight and bias
        parameter.zero_()
    shape = getattr(norm, leaf).shape
    probe = torch.linspace(-1, 1, shape.numel(), device=parameter.device).view(1, *shape)
    try:
        return 0.0 if bool(norm(probe).any()) else 1.0
    except TypeError:  # it wants more than an input, a gate for one: those multiply by the weight
        return 1.0
