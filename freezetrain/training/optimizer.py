"""AdamW with weight decay only where it belongs, and the course of its learning rate."""

import math

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from freezetrain.recipe import Optimization
from freezetrain.regions.resolve import full_shape


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Split the trainable parameters into those with weight decay and those without.

    Matrices decay. Norms and biases do not: they have few entries and a scale of their own.
    Embeddings do not either: a token that the target language never uses gets no gradient, and
    decay alone would wear its row away, which is forgetting by the optimizer.
    """
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            matrix = len(full_shape(parameter)) >= 2  # ZeRO-3 leaves an empty vector of each
            decays = matrix and id(parameter) not in embeddings
            (decayed if decays else spared).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def learning_rate_factor(step: int, steps: int, settings: Optimization) -> float:
    """Share of the peak learning rate at optimizer step ``step``, counted from 0, of ``steps``.

    The warm-up is a straight line that leaves ``warmup_from`` one step before the first (a step
    with none would do nothing) and reaches 1 with its last step. What then falls, a half cosine
    or the straight line at the end of wsd, starts from 1 and would reach
    ``min_learning_rate_ratio`` one step after the last.

    cosine: Loshchilov and Hutter, arXiv 1608.03983. wsd (warm-up, stable, decay): Hu et al.,
    "MiniCPM", arXiv 2404.06395; the straight line: Hägele et al., arXiv 2405.18392.
    """
    warmup = min(settings.warmup_steps, steps)
    if step < warmup:
        first = settings.warmup_from
        return first + (1 - first) * (step + 1) / warmup
    lowest = settings.min_learning_rate_ratio
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "wsd":
        start = max(float(warmup), (1 - settings.decay_ratio) * steps)
        return 1 - (1 - lowest) * _progress(step, start, steps)
    return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * _progress(step, warmup, steps)))


def _progress(step: int, start: float, end: int) -> float:
    """How much of the way from ``start`` to ``end`` is done at ``step``, from 0 to 1."""
    if step <= start:
        return 0.0
    return min(1.0, (step - start) / (end - start)) if end > start else 1.0


def build_optimizer(
    model: nn.Module, settings: Optimization, steps: int, device: torch.device | None = None
) -> tuple[AdamW, LambdaLR]:
    """AdamW over the model's trainable parameters, and its schedule, a tick an optimizer step.

    ``device``: where it will step, if that is not where the parameters are now: DeepSpeed moves
    them later, and an offloaded optimizer steps on the CPU. On GPUs and CPUs PyTorch's fused
    kernel is used, one pass over each weight, its gradient and its moments; its default elsewhere.
    """
    groups = parameter_groups(model, settings.weight_decay)
    kinds = {p.device.type for group in groups for p in group["params"]}
    if device is not None:
        kinds = {device.type}
    optimizer = AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        fused=True if kinds in ({"cuda"}, {"cpu"}) else None,
    )
    return optimizer, LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps, settings))
