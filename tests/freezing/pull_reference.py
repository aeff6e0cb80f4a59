"""Training with a pull, and the closed form of one written out."""

import torch
from frozen_reference import TinyLM, adamw, loss_of, steps_of_batches
from torch import nn

STRENGTH = 20.0  # at a learning rate of 0.01: a fifth of the way


def train(model, optimizer, after=lambda: None, steps=5, scheduler=None):
    for batches in steps_of_batches(steps):
        for input_ids in batches:
            (loss_of(model(input_ids), input_ids) / len(batches)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
        after()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def plain_loop(strengths, rate=lambda step: 1e-2, model=None):
    """θ ← θ − min(1, ηλ)(θ − θ₀) written out; ``strengths``: name -> λ, a number or a tensor."""
    model = model or TinyLM()
    base = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer, steps = adamw(model.parameters()), iter(range(100))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step) / 1e-2)

    @torch.no_grad()
    def back():
        eta = rate(next(steps))
        for name, parameter in model.named_parameters():
            share = torch.as_tensor(eta * strengths[name], dtype=torch.float64).clamp(max=1.0)
            parameter -= share * (parameter - base[name])

    return train(model, optimizer, back, scheduler=scheduler)


def everywhere(strength):
    return {name: strength for name, _ in TinyLM().named_parameters()}


def close(weights, expected):
    return all(torch.allclose(weights[n], expected[n], 1e-11, 1e-13) for n in expected)
