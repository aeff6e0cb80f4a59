"""Change the entries of a region for a while, then put them back."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from freezetrain.errors import UserError
from freezetrain.regions.blocks import is_norm
from freezetrain.regions.entries import generator_of
from freezetrain.regions.parameters import Resolved
from freezetrain.regions.region import Region


def ablate(model: nn.Module, region: Region) -> AbstractContextManager[None]:
    """Zero the region's entries in ``model`` while the ``with`` block runs.

    ``with ablate(model, region): evaluate(model)``; see :func:`perturb` for everything else.
    """
    return perturb(model, region, value=0.0)


@contextmanager
def perturb(
    model: nn.Module,
    region: Region,
    *,
    scale: float | None = None,
    value: float | None = None,
    reinitialize: int | None = None,
) -> Iterator[None]:
    """Change the region's entries while the block runs, in one of three ways.

    ``scale`` multiplies them, ``value`` replaces them, and ``reinitialize``, a seed, draws them
    anew as a model starts out, see :func:`fresh_values`.

    Afterwards, also after an exception, each entry gets its old value back bit for bit (minus
    zero and NaN included). What the block itself writes to these entries is lost. Contexts nest;
    the inner one must end first. A tensor that has two names (a tied head) is perturbed once.
    Memory: a copy of the region's values.

    Raises:
        UserError: not exactly one of ``scale``, ``value`` and ``reinitialize``; a region that does
            not fit the model.
    """
    if (scale, value, reinitialize).count(None) != 2:
        raise UserError(
            "expected one of scale, value and reinitialize to perturb with, got "
            f"{scale=}, {value=}, {reinitialize=}"
        )
    saved = []
    try:
        for target in region.resolve(model):
            values = target.entries.read(target.parameter)
            saved.append((target, values))
            if scale is not None:
                target.entries.write(target.parameter, values * scale)
            elif value is not None:
                target.entries.fill(target.parameter, value)
            elif reinitialize is not None:
                fresh = fresh_values(model, target, reinitialize)
                target.entries.write(target.parameter, fresh)
        yield
    finally:
        for target, values in saved:
            target.entries.write(target.parameter, values)


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
