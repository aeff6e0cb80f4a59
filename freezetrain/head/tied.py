"""The gradient of an embedding that is tied to the head: one of [V, H] for both."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from freezetrain.head.find import Head


class Shared:
    """Hands the head's gradient of the weights on to the embedding, whose backward pass is later.

    Autograd would make one of each, and add them: a second [V, H] at the end of the backward pass.
    """

    def __init__(self) -> None:
        self.lookups = 0
        """Of the forward pass, that the head's gradient can be handed to."""
        self.gradient: Tensor | None = None


@contextmanager
def shared_gradient(model: nn.Module, head: Head) -> Iterator[Shared | None]:
    """For the forward pass of a model: what :func:`~freezetrain.head.loss.head_loss` is given.

    None where the head is not tied to a plain embedding. For one process: engines of several look
    at the gradients of the two as autograd makes them.
    """
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    if not _can_be_shared(embedding, head):
        yield None
        return
    shared, forward = Shared(), embedding.forward

    def looked_up(ids: Tensor) -> Tensor:
        with _Lookups(embedding, shared):
            return forward(ids)  # type: ignore[no-any-return]

    embedding.forward = looked_up
    try:
        yield shared
    finally:
        del embedding.forward


def _can_be_shared(embedding: Any, head: Head) -> bool:
    return (
        isinstance(embedding, nn.Embedding)
        and embedding.weight is head.module.weight
        and not (embedding.sparse or embedding.scale_grad_by_freq)
        and embedding.max_norm is None
    )


class _Lookups(torch.overrides.TorchFunctionMode):
    """Calls :class:`_Lookup` where the weights of ``embedding`` are looked up in.

    Not in place of the embedding, which may scale what it finds (Gemma).
    """

    def __init__(self, embedding: nn.Embedding, shared: Shared) -> None:
        super().__init__()
        self._embedding = embedding
        self._shared = shared

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        weight = self._embedding.weight
        if function is not F.embedding or len(args) < 2 or args[1] is not weight:
            return function(*args, **(kwargs or {}))
        if not (torch.is_grad_enabled() and weight.requires_grad):
            return function(*args, **(kwargs or {}))
        self._shared.lookups += 1
        found = _Lookup.apply(weight, args[0], self._embedding.padding_idx, self._shared)
        return found  # type: ignore[no-any-return]


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, ids: Tensor, padding: int | None, shared: Shared
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.padding, ctx.shared, ctx.like = padding, shared, (weight.shape, weight.dtype)
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (ids,) = ctx.saved_tensors
        total, ctx.shared.gradient = ctx.shared.gradient, None
        if total is None:  # the same weights were looked up in before
            shape, dtype = ctx.like
            total = gradient.new_zeros(shape, dtype=dtype)
        rows = gradient.flatten(0, -2).to(total.dtype)
        if ctx.padding is not None:
            rows = rows.masked_fill((ids.flatten() == ctx.padding)[:, None], 0.0)
        return total.index_add_(0, ids.flatten(), rows), None, None, None
