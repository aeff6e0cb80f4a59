"""Losses of a head's logits, and their gradients, some places at a time.

As Liger Kernel's fused linear cross-entropy does (Hsu et al. 2024, arXiv 2410.10989) gradients are
computed beside the loss, while the logits are at hand: three products of matrices, as many as
whole logits take, and nothing is computed twice. What is kept for the backward pass are the
gradients themselves, which are multiplied there by that of the loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from freezetrain.head.chunks import computed_dtype, linear, parts_of, places_at_once
from freezetrain.head.find import Head
from freezetrain.head.tied import Shared
from freezetrain.nll import NO_LABEL

_ROWS_AT_ONCE = 1 << 14  # of the weights' gradient, where a product is not added in place


class PlaceLoss(Protocol):
    """A loss of each place."""

    def __call__(self, log_q: Tensor, part: slice, gradient: bool) -> Tensor:
        """The losses [p] of the places in ``part``, whose log-probabilities are ``log_q`` [p, V].

        ``gradient``: ``log_q`` becomes that of each loss for the place's logits.
        """


@dataclass(frozen=True)
class Term:
    """A loss and its places: numbers [n] int64 among all P; None: all of them."""

    loss: PlaceLoss
    places: Tensor | None = None


class LabelLoss:
    """NLL of ``labels`` [n] int64 in nats; those of NO_LABEL (-100) have a loss of 0."""

    def __init__(self, labels: Tensor) -> None:
        self._counts = labels != NO_LABEL
        self._labels = torch.where(self._counts, labels, 0)[:, None]

    def __call__(self, log_q: Tensor, part: slice, gradient: bool) -> Tensor:
        labels, counts = self._labels[part], self._counts[part]
        losses = torch.where(counts, -log_q.gather(1, labels)[:, 0], 0.0)
        if gradient:  # q - 1 at the label, q elsewhere; no NaN of a place that does not count
            log_q.exp_().scatter_add_(1, labels, log_q.new_full(labels.shape, -1.0))
            if counts.is_cuda or not bool(counts.all()):  # a GPU would be waited for
                log_q.masked_fill_(~counts[:, None], 0.0)
        return losses


def head_loss(
    hidden: Tensor, head: Head, terms: Sequence[Term], shared: Shared | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The sum of all losses of ``terms``, and for each of them its losses [n] without gradients.

    ``hidden`` [..., H] is what the head is given, of P places; losses are in fp32 (fp64 where the
    weights are). At most a few hundred megabytes of logits are held at a time
    (:func:`~freezetrain.head.chunks.places_at_once`), and from here to the backward pass the
    gradients of the head's weights, in fp32. Backward once. ``shared``: of an embedding that the
    head is tied to.
    """
    apply: Callable[..., Tensor] = _HeadLoss.apply
    losses: list[Tensor] = []
    given: list[Tensor | None] = [hidden, head.module.weight, head.module.bias]
    if not torch.is_grad_enabled():  # of which a Function's own forward knows nothing
        given = [None if tensor is None else tensor.detach() for tensor in given]
    return apply(*given, head, terms, losses, shared), losses


def label_loss(hidden: Tensor, head: Head, labels: Tensor) -> Tensor:
    """Sum of the NLL in nats of ``labels`` [B, L], which stand at the places that predict them.

    ``hidden`` [B, L, H]; see :func:`head_loss` and, for labels that do not count,
    :class:`LabelLoss`.
    """
    return head_loss(hidden, head, [Term(LabelLoss(labels.flatten()))])[0]


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        terms: Sequence[Term],
        losses: list[Tensor],
        shared: Shared | None,
    ) -> Tensor:
        needs = ctx.needs_input_grad[:3]
        sums = _Sums(hidden, weight, bias, needs)
        for term in terms:
            losses.append(sums.add(head, term))
        ctx.gradients = sums.gradients
        ctx.shared = shared if shared is not None and shared.lookups else None
        ctx.like = [(hidden.shape, hidden.dtype), (weight.shape, weight.dtype)]
        ctx.like.append(None if bias is None else (bias.shape, bias.dtype))
        return torch.stack([values.sum() for values in losses]).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a head's loss are gone after the first backward")
        gradients, ctx.gradients = ctx.gradients, None
        given: list[Tensor | None] = []
        for number, like in enumerate(ctx.like):
            gradient, gradients[number] = gradients[number], None
            if gradient is not None:
                gradient = gradient.mul_(output).to(like[1])
                # A view would keep autograd from adding another gradient to it in place.
                if gradient.shape != like[0]:
                    gradient = gradient.view(like[0])
            given.append(gradient)
        if ctx.shared is not None:
            ctx.shared.gradient, given[1] = given[1], None
        return (*given, None, None, None, None)


class _Sums:
    """The gradients of hidden states, weights and bias, added up chunk by chunk."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: Sequence[bool]
    ) -> None:
        self._dtype = computed_dtype(weight)
        self._wide = torch.promote_types(self._dtype, torch.float32)
        self._hidden = hidden.detach().flatten(0, -2)
        self._weight = weight.detach().to(self._dtype)
        self._bias = None if bias is None else bias.detach().to(self._dtype)
        # fp16 has no room for small values before the loss is scaled.
        kept = self._wide if hidden.dtype == torch.float16 else hidden.dtype
        self.gradients: list[Tensor | None] = [None, None, None]
        if needs[0]:
            self.gradients[0] = torch.zeros_like(self._hidden, dtype=kept)
        if needs[1]:
            self.gradients[1] = torch.zeros_like(weight, dtype=self._wide)
        if bias is not None and needs[2]:
            self.gradients[2] = torch.zeros_like(bias, dtype=self._wide)

    def add(self, head: Head, term: Term) -> Tensor:
        """The losses [n] of ``term``."""
        count = len(self._hidden) if term.places is None else len(term.places)
        at_once = min(places_at_once(head.vocabulary, self._hidden.device), max(count, 1))
        wanted = any(gradient is not None for gradient in self.gradients)
        losses = self._hidden.new_empty(count, dtype=self._wide)
        outputs, log_qs = self._hidden.new_empty(
            (2, at_once, head.vocabulary), dtype=self._wide
        ).unbind()
        for part in parts_of(count, at_once):
            places = part if term.places is None else term.places[part]
            hidden = self._hidden[places].to(self._dtype)
            logits = head.finish_(linear(hidden, self._weight, self._bias, outputs))
            log_q = torch.log_softmax(logits, 1, out=log_qs[: len(logits)])
            losses[part] = term.loss(log_q, part, wanted)
            if wanted:
                self._add(places, hidden, head.chain_(log_q, logits))
        return losses

    def _add(self, places: slice | Tensor, hidden: Tensor, gradient: Tensor) -> None:
        """``gradient`` [p, V]: for the layer's outputs at ``places``, given ``hidden`` [p, H]."""
        of_hidden, of_weight, of_bias = self.gradients
        if of_bias is not None:
            of_bias += gradient.sum(0)
        with torch.autocast(hidden.device.type, enabled=False):
            narrow = gradient.to(self._dtype)
            if of_hidden is not None:  # a place may have several losses
                of_hidden[places] += (narrow @ self._weight).to(of_hidden.dtype)
            if of_weight is None:
                return
            if self._dtype == self._wide:
                of_weight.addmm_(gradient.t(), hidden)
                return
            for rows in parts_of(len(of_weight), _ROWS_AT_ONCE):
                of_weight[rows] += narrow[:, rows].t() @ hidden
