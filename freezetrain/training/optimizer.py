"""AdamW with weight decay only where it belongs, and warm-up with cosine decay."""

import math

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from freezetrain.recipe import Optimization


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
            decays = parameter.ndim >= 2 and id(parameter) not in embeddings
            (decayed if decays else spared).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def learning_rate_factor(step: int, settings: Optimization) -> float:
    """Share of the peak learning rate at optimizer step ``step``, counted from 0.

    Linear from 1/warmup to 1 over the warm-up, then a half cosine from 1 that would reach
    ``min_learning_rate_ratio`` one step after the last.
    """
    warmup = min(settings.warmup_steps, settings.steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, settings.steps - warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return settings.min_learning_rate_ratio + (1 - settings.min_learning_rate_ratio) * cosine


def build_optimizer(model: nn.Module, settings: Optimization) -> tuple[AdamW, LambdaLR]:
    """AdamW over the model's trainable parameters, and its schedule, a tick an optimizer step."""
    optimizer = AdamW(
        parameter_groups(model, settings.weight_decay),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
    )
    return optimizer, LambdaLR(optimizer, lambda step: learning_rate_factor(step, settings))
