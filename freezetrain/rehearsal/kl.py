"""KL(base ‖ model) at each place: over the base's k likeliest tokens and one bucket: the rest."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from freezetrain.errors import UserError
from freezetrain.rehearsal.targets import Targets, places_at_once


def rehearsal_kl(logits: Tensor, targets: Targets) -> Tensor:
    """KL(base ‖ model) in nats at each of P places, [P] in fp32 (fp64 where the logits are).

    Σᵢ pᵢ (log pᵢ − log qᵢ) over the k tokens of ``targets`` and, as one more, all other tokens
    together; q is the softmax of ``logits`` [P, V], the model's at the places of ``targets``. For
    the base's own words this is the forgetting, in nats per token, that training has brought (Li
    and Hoiem 2016, arXiv 1606.09282, call it learning without forgetting).

    The sum never exceeds the KL over the whole vocabulary (the log-sum inequality), and what it
    lacks is r · KL between what base and model say within the rest, with r the base's mass of it:
    0 where k = V. Probabilities stored in 16 bits are rounded by at most 2⁻¹¹ of their logarithm,
    and made to sum to 1 again.

    Beside the logits and their gradient a few million values are held in fp32, so that no tensor
    [P, V] in fp32 is ever whole where the logits are in 16 bits. Differentiable once.

    Raises UserError where places differ in number, or a token on the CPU lies beyond the logits.
    """
    if logits.ndim != 2 or len(logits) != len(targets):
        raise UserError(
            f"expected logits [P, V] for {len(targets)} places of targets, got "
            f"{list(logits.shape)}; take the logits of the same places"
        )
    tokens = targets.tokens.to(torch.int64)
    # On a GPU it would be waited for at each step.
    if tokens.device.type == "cpu" and tokens.numel() and int(tokens.max()) >= logits.shape[1]:
        raise UserError(
            f"the targets hold token {int(tokens.max())} and the model has {logits.shape[1]} "
            "tokens; give targets of this model's base"
        )
    tokens = tokens.to(logits.device)
    probabilities = targets.probabilities().to(logits.device)
    apply: Callable[..., Tensor] = _BucketKL.apply
    return apply(logits, tokens, probabilities)


def full_kl(logits: Tensor, base_logits: Tensor) -> Tensor:
    """KL(base ‖ model) in nats at each of P places over all V tokens, [P] in fp32 or wider.

    Both are [P, V]; no gradient flows to ``base_logits``. All of it is in fp32 at once.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    model = F.log_softmax(logits, dim=1, dtype=wide)
    base = F.log_softmax(base_logits.detach(), dim=1, dtype=wide)
    return F.kl_div(model, base, reduction="none", log_target=True).sum(dim=1)


class _BucketKL(torch.autograd.Function):
    """KL of buckets: ∂/∂zⱼ is qⱼ − pⱼ for a token of the k, and qⱼ − r · qⱼ/q_rest for another."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, probabilities: Tensor) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        kl, total, others = (logits.new_empty(len(logits), dtype=wide) for _ in range(3))
        for part in _parts(logits):
            z = logits[part].to(wide)
            total[part] = z.logsumexp(dim=1)
            top = z.gather(1, tokens[part])
            others[part] = z.scatter(1, tokens[part], -torch.inf).logsumexp(dim=1)
            log_q = torch.cat([top, others[part, None]], dim=1) - total[part, None]
            p = probabilities[part].to(wide)
            kl[part] = torch.where(p > 0, p * (p.log() - log_q), 0.0).sum(dim=1)
        ctx.save_for_backward(logits, tokens, probabilities, total, others)
        return kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output: Tensor) -> tuple[Tensor, None, None]:
        logits, tokens, probabilities, total, others = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for part in _parts(logits):
            z = logits[part].to(total.dtype)
            p = probabilities[part].to(total.dtype)
            q = (z - total[part, None]).exp()
            top = q.gather(1, tokens[part]) - p[:, :-1]
            within = (z - others[part, None]).exp()  # of the rest; of the k it is not looked at
            q -= p[:, -1:] * within
            q.scatter_(1, tokens[part], top)
            gradient[part] = q * output[part, None]
        return gradient, None, None


def _parts(logits: Tensor) -> list[slice]:
    rows = places_at_once(logits.shape[1])
    return [slice(first, first + rows) for first in range(0, len(logits), rows)]
