"""One step of each optimizer written out, from the papers: how much is taken from a parameter.

Of freezetrain and of the libraries that it uses none is called. ``state`` is a dict that a
parameter keeps. A decay is decoupled: rate · decay · weight.
"""

import math

import torch
from torch import Tensor

BETAS, MOMENTUM = (0.9, 0.95), 0.95


def adamw(name: str, weight: Tensor, gradient: Tensor, state: dict, step: int, rate: float):
    """Loshchilov and Hutter, arXiv 1711.05101, algorithm 2."""
    first = state.setdefault("first", torch.zeros_like(weight))
    second = state.setdefault("second", torch.zeros_like(weight))
    first.mul_(BETAS[0]).add_((1 - BETAS[0]) * gradient)
    second.mul_(BETAS[1]).add_((1 - BETAS[1]) * gradient.square())
    right = [1 - beta ** (step + 1) for beta in BETAS]
    return rate * (first / right[0]) / ((second / right[1]).sqrt() + 1e-8)


def lion(name: str, weight: Tensor, gradient: Tensor, state: dict, step: int, rate: float):
    """Chen et al., arXiv 2302.06675, algorithm 2."""
    moment = state.setdefault("moment", torch.zeros_like(weight))
    change = rate * torch.sign(BETAS[0] * moment + (1 - BETAS[0]) * gradient)
    moment.mul_(BETAS[1]).add_((1 - BETAS[1]) * gradient)
    return change


def adafactor(name: str, weight: Tensor, gradient: Tensor, state: dict, step: int, rate: float):
    """Shazeer and Stern, arXiv 1804.04235, algorithms 4 and 5 with a learning rate from outside."""
    beta = 1 - (step + 1) ** -0.8
    square = gradient.square() + 1e-30
    if gradient.dim() < 2:
        second = state.setdefault("second", torch.zeros_like(weight))
        second.mul_(beta).add_((1 - beta) * square)
    else:
        row = state.setdefault("row", torch.zeros(len(weight), 1))
        column = state.setdefault("column", torch.zeros(1, weight.shape[1]))
        row.mul_(beta).add_((1 - beta) * square.sum(1, keepdim=True))
        column.mul_(beta).add_((1 - beta) * square.sum(0, keepdim=True))
        second = row @ column / row.sum()
    update = gradient / second.sqrt()
    return rate * update / max(1.0, update.square().mean().sqrt().item())


def muon(name: str, weight: Tensor, gradient: Tensor, state: dict, step: int, rate: float):
    """Jordan et al. 2024, Nesterov; updates as large as AdamW's: Liu et al., arXiv 2502.16982."""
    if "layers" not in name or gradient.dim() < 2:
        return adamw(name, weight, gradient, state, step, rate)
    moment = state.setdefault("moment", torch.zeros_like(weight))
    moment.mul_(MOMENTUM).add_((1 - MOMENTUM) * gradient)
    update = (1 - MOMENTUM) * gradient + MOMENTUM * moment
    # The polynomial acts on the singular values alone.
    left, values, right = torch.linalg.svd(update.double(), full_matrices=False)
    values = values / values.square().sum().sqrt()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    scale = 0.2 * math.sqrt(max(weight.shape))
    return rate * scale * ((left * values) @ right).to(weight.dtype)


RULES = {
    "adamw": adamw,
    "adamw-8bit": adamw,  # to what its rounded moments change
    "adafactor": adafactor,
    "lion": lion,
    "muon": muon,
}
