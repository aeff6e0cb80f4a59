"""Optimizers of a user, which test_optimizer_kinds.py names by their path."""

import torch
from torch.optim import Optimizer


class Signs(Optimizer):
    """A step of the length of the learning rate against each gradient; keeps two values a weight"""

    def __init__(self, params, lr, weight_decay=0.0, betas=(0.5, 0.5), power=(1, 1)):
        self.power = power
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                self.state[parameter].setdefault("two", torch.zeros(2, parameter.numel()))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(group["lr"] * parameter.grad.sign())
        return loss


class Rows(Signs):
    """Divides by the sum over a row, so that it needs whole matrices."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(
                    group["lr"] * parameter.grad / parameter.grad.abs().sum(-1)[..., None]
                )
        return None if closure is None else closure()


class Twice(Signs):
    """Asks for the loss twice."""

    def step(self, closure=None):
        closure()
        return super().step(closure)


class NoRate(Signs):
    def __init__(self, params):
        super().__init__(params, 0.1)


class Unhooked(Signs):
    """Does not let hooks run around its step."""

    def _patch_step_function(self):
        self._zero_grad_profile_name = "zero_grad"

    def step(self, closure=None):
        return Signs.step.__wrapped__(self, closure)


def not_a_class(params, lr):
    return Signs(params, lr)
