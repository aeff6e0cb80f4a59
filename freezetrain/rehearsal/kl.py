"""KL(base ‖ model) at each place: over the base's k likeliest tokens and one bucket: the rest."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from freezetrain.errors import UserError
from freezetrain.head.chunks import chunks_of_logits, parts_of, places_at_once
from freezetrain.head.find import Head
from freezetrain.rehearsal.targets import Targets


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

    Beside the logits and their gradient those of some places are held in fp32, so that no tensor
    [P, V] in fp32 is ever whole where the logits are in 16 bits. Differentiable once.

    Raises UserError where places differ in number, or a token on the CPU lies beyond the logits.
    """
    if logits.ndim != 2 or len(logits) != len(targets):
        raise UserError(
            f"expected logits [P, V] for {len(targets)} places of targets, got "
            f"{list(logits.shape)}; take the logits of the same places"
        )
    apply: Callable[..., Tensor] = _BucketKL.apply
    return apply(logits, *_buckets(targets, logits.shape[1], logits.device))


def full_kl(logits: Tensor, base_logits: Tensor) -> Tensor:
    """KL(base ‖ model) in nats at each of P places over all V tokens, [P] in fp32 or wider.

    Both are [P, V]; no gradient flows to ``base_logits``. All of it is in fp32 at once.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    model = F.log_softmax(logits, dim=1, dtype=wide)
    base = F.log_softmax(base_logits.detach(), dim=1, dtype=wide)
    return F.kl_div(model, base, reduction="none", log_target=True).sum(dim=1)


class BucketKL:
    """:func:`rehearsal_kl` at the places of ``targets``, as a loss of a head's logits.

    ``vocabulary``: tokens that the head has. UserError as there.
    """

    def __init__(self, targets: Targets, vocabulary: int, device: torch.device) -> None:
        self._tokens, self._probabilities = _buckets(targets, vocabulary, device)

    def __call__(self, log_q: Tensor, part: slice, gradient: bool) -> Tensor:
        """As :class:`freezetrain.head.loss.PlaceLoss` says."""
        tokens = self._tokens[part]
        probabilities = self._probabilities[part].to(log_q.dtype)
        kl, others = _values(log_q, tokens, probabilities)
        if gradient:
            _to_gradient(log_q, others, tokens, probabilities)
        return kl


class FullKL:
    """:func:`full_kl` at places of the base, as a loss of a head's logits.

    ``hidden`` [P, H]: what the base's ``head`` is given there. Logits of the base are computed
    together with those of the model, some places at a time.
    """

    def __init__(self, hidden: Tensor, head: Head) -> None:
        self._hidden, self._head = hidden, head

    def __call__(self, log_q: Tensor, part: slice, gradient: bool) -> Tensor:
        """As :class:`freezetrain.head.loss.PlaceLoss` says."""
        kl = log_q.new_empty(len(log_q))
        for places, logits in chunks_of_logits(self._hidden[part], self._head):
            log_p = logits.log_softmax(dim=1)
            p = logits.copy_(log_p).exp_()
            kl[places] = log_p.sub_(log_q[places]).mul_(p).sum(dim=1)
            if gradient:
                log_q[places].exp_().sub_(p)
        return kl


def _buckets(targets: Targets, vocabulary: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens [P, k] int64 and probabilities [P, k + 1] on ``device``."""
    tokens = targets.tokens.to(torch.int64)
    # On a GPU it would be waited for at each step.
    if tokens.device.type == "cpu" and tokens.numel() and int(tokens.max()) >= vocabulary:
        raise UserError(
            f"the targets hold token {int(tokens.max())} and the model has {vocabulary} "
            "tokens; give targets of this model's base"
        )
    return tokens.to(device), targets.probabilities().to(device)


class _BucketKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, probabilities: Tensor) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        kl, total, others = (logits.new_empty(len(logits), dtype=wide) for _ in range(3))
        for part in _parts(logits):
            z = logits[part].to(wide)
            total[part] = z.logsumexp(dim=1)
            log_q = z - total[part, None]
            kl[part], others[part] = _values(log_q, tokens[part], probabilities[part].to(wide))
        ctx.save_for_backward(logits, tokens, probabilities, total, others)
        return kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output: Tensor) -> tuple[Tensor, None, None]:
        logits, tokens, probabilities, total, others = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for part in _parts(logits):
            log_q = logits[part].to(total.dtype) - total[part, None]
            p = probabilities[part].to(total.dtype)
            _to_gradient(log_q, others[part], tokens[part], p)
            gradient[part] = log_q * output[part, None]
        return gradient, None, None


def _values(log_q: Tensor, tokens: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """KL of buckets [p], and what the model gives to all tokens of the rest, as a logarithm."""
    others = log_q.scatter(1, tokens, -torch.inf).logsumexp(dim=1)
    buckets = torch.cat([log_q.gather(1, tokens), others[:, None]], dim=1)
    p = probabilities
    return torch.where(p > 0, p * (p.log() - buckets), 0.0).sum(dim=1), others


def _to_gradient(log_q: Tensor, others: Tensor, tokens: Tensor, p: Tensor) -> None:
    """``log_q`` becomes ∂/∂z: qⱼ − pⱼ for a token of the k, qⱼ − r · qⱼ/q_rest for another."""
    of_rest = (log_q - others[:, None]).exp_().mul_(p[:, -1:])  # of the k it is not looked at
    q = log_q.exp_()
    top = q.gather(1, tokens) - p[:, :-1]
    q -= of_rest
    q.scatter_(1, tokens, top)


def _parts(logits: Tensor) -> list[slice]:
    return list(parts_of(len(logits), places_at_once(logits.shape[1], logits.device)))
