"""Other ways to freeze entries of a model, small and faithful to how they were published.

Each takes a model and dense bool masks (parameter name → True where frozen, of the parameter's
shape), and returns a function to call after each micro-step's backward and the optimizer's step,
as its authors' training loop does.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def no_freezing(model: nn.Module, masks: Mapping[str, Tensor]) -> Callable[[], None]:
    """Plain training."""
    return lambda: None


def restore(model: nn.Module, masks: Mapping[str, Tensor]) -> Callable[[], None]:
    """The paper's script (arXiv 2402.14700): put the values back after each micro-step.

    It keeps a dense mask (1 byte a parameter) and the saved values, zero elsewhere, in 16 bits
    (2 bytes) there, in the weights' dtype here.
    """
    held = []
    for name, parameter in model.named_parameters():
        if name in masks:
            mask = masks[name]
            held.append((parameter, mask, parameter.detach() * mask))

    @torch.no_grad()
    def after() -> None:
        for parameter, mask, saved in held:
            parameter.mul_(~mask)
            parameter.add_(saved)

    return after


def dense_hook(model: nn.Module, masks: Mapping[str, Tensor]) -> Callable[[], None]:
    """``register_hook(lambda g: g * mask)``, the mask 0 where frozen, in the gradient's dtype."""
    for name, parameter in model.named_parameters():
        if name in masks:
            keep = (~masks[name]).to(parameter.dtype)
            parameter.register_hook(lambda gradient, keep=keep: gradient * keep)
    return lambda: None


def masked_fill_hook(model: nn.Module, masks: Mapping[str, Tensor]) -> Callable[[], None]:
    """SSU's (arXiv 2512.04844): a hook that fills the frozen entries of a gradient with zeros."""
    for name, parameter in model.named_parameters():
        if name in masks:
            mask = masks[name]
            parameter.register_hook(lambda gradient, mask=mask: gradient.masked_fill(mask, 0))
    return lambda: None
