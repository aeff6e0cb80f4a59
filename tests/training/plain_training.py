"""Training written out in plain PyTorch, from the definitions: what test_variants.py expects.

Own optimizers, clipping and schedule; frozen entries are constants; a penalty's gradient, averages
of weights and adapters are computed as their formulas stand. Of freezetrain it uses nothing.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from plain_optimizers import RULES
from torch import Tensor, nn
from torch.func import functional_call

STEPS, ACCUMULATE, RATE, DECAY, CLIP = 4, 3, 3e-3, 0.1, 0.5


@dataclass
class Variant:
    """What is done beside plain training."""

    frozen: Mapping[str, Tensor] = field(default_factory=dict)
    """Parameter -> bool mask."""
    first: int = 0
    clamp: float | None = None
    strength: float = 0.0
    fisher: Mapping[str, Tensor] | None = None
    """Parameter -> importance; None: 1 for each."""
    pull: Callable[[str, Tensor], Tensor] | None = None
    """Parameter and its weights -> the pull's strength at each."""
    optimizer: str = "adamw"
    factor: Callable[[str], float] = field(default=lambda name: 1.0)
    """Parameter -> factor of its learning rate."""
    ema: float | None = None
    share: float | None = None
    """Of the trained weights in the average with the base."""
    adapters: Mapping[str, Tensor] = field(default_factory=dict)
    """Parameter -> A [rank, in]."""
    scale: float = 1.0
    teacher: Mapping[str, Tensor] | None = None
    """Weights of what rehearsal is compared with over all tokens."""


def train(model: nn.Module, batches: Iterable[dict], variant: Variant) -> dict[str, Tensor]:
    """The weights that ``STEPS`` steps leave."""
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    base = {name: value.clone() for name, value in weights.items()}
    if variant.clamp is not None:
        for name, mask in variant.frozen.items():
            weights[name][mask] = variant.clamp
    if variant.adapters:
        steps = {f"{name}.A": a.clone() for name, a in variant.adapters.items()}
        for name, a in variant.adapters.items():
            steps[f"{name}.B"] = torch.zeros(len(weights[name]), len(a))
    else:
        steps = weights
    states: dict[str, dict] = {name: {} for name in steps}
    average = {name: value.clone() for name, value in weights.items()}
    batches = iter(batches)
    for step in range(STEPS):
        frozen = variant.frozen if step >= variant.first else {}
        gradients = {name: torch.zeros_like(value) for name, value in steps.items()}
        parts = [next(batches) for _ in range(ACCUMULATE)]
        count = sum(int((part["labels"] != -100).sum()) for part in parts)
        count += sum(len(part.get("kl_places", ())) for part in parts)
        for batch in parts:
            leaves = {name: value.clone().requires_grad_() for name, value in steps.items()}
            used = _adapted(weights, leaves, variant) if variant.adapters else leaves
            logits = functional_call(model, used, (batch["input_ids"],)).logits
            loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
            loss = loss + _kl(model, variant.teacher, batch, logits)
            computed = torch.autograd.grad(loss / count, list(leaves.values()))
            for name, gradient in zip(leaves, computed, strict=True):
                gradients[name] += gradient
        for name, gradient in gradients.items():
            if variant.strength:
                ones = torch.ones_like(gradient)
                importance = ones if variant.fisher is None else variant.fisher.get(name, 0 * ones)
                gradient += variant.strength * importance * (weights[name] - base[name])
            if name in frozen:
                gradient[frozen[name]] = 0.0
        norm = math.sqrt(sum(g.double().square().sum().item() for g in gradients.values()))
        rate = RATE * (1.0 if step < 1 else 0.5 * (1 + math.cos(math.pi * (step - 1) / 3)))
        for name, gradient in gradients.items():
            gradient *= min(1.0, CLIP / (norm + 1e-6))
            own, weight = rate * variant.factor(name), steps[name]
            change = RULES[variant.optimizer](name, weight, gradient, states[name], step, own)
            if "norm" not in name and "embed" not in name:  # they do not decay
                change = change + own * DECAY * weight
            if name in frozen:
                change[frozen[name]] = 0.0
            weight.sub_(change)
            if variant.pull is not None:
                share = (own * variant.pull(name, weights[name])).clamp(max=1.0)
                if name in frozen:
                    share[frozen[name]] = 0.0
                weights[name] -= share * (weights[name] - base[name])
        if variant.ema is not None:
            for name, value in weights.items():
                average[name] = variant.ema * average[name] + (1 - variant.ema) * value
    if variant.adapters:
        return _adapted(weights, steps, variant)
    if variant.share is not None:
        return {n: base[n] + variant.share * (value - base[n]) for n, value in weights.items()}
    return weights if variant.ema is None else average


def _kl(model, teacher, batch, logits):
    """Σ p log(p/q) at the rehearsed places: of all tokens, or of those stored and all others."""
    if not len(places := batch.get("kl_places", ())):
        return 0.0
    q = logits.flatten(0, 1)[places].double().softmax(1)
    if "top_tokens" not in batch:
        with torch.no_grad():
            said = functional_call(model, teacher, (batch["input_ids"],)).logits
        p = said.flatten(0, 1)[places].double().softmax(1)
        return (p * (p / q).log()).sum()
    logs = [batch[name].view(torch.float16).double() for name in ("top_log_probs", "rest_log_prob")]
    p = torch.cat([logs[0], logs[1][:, None]], 1).exp()
    p = p / p.sum(1, keepdim=True)
    top = q.gather(1, batch["top_tokens"].long())
    q = torch.cat([top, 1 - top.sum(1, keepdim=True)], 1)
    return (p * (p / q).log()).sum()


def _adapted(weights, pairs, variant):
    """W + scale · B A."""
    return {
        name: value + variant.scale * pairs[f"{name}.B"] @ pairs[f"{name}.A"]
        if name in variant.adapters
        else value
        for name, value in weights.items()
    }
