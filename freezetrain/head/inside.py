"""Have a model call something else where it calls its head."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from freezetrain.head.find import Head


@contextmanager
def inside(head: Head, compute: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """While this lasts the head gives ``compute(hidden)`` for what it is given, [B, L, H].

    What it gives is added to the list, and the model goes on with a zero [1, 1, 1] for logits,
    through which no gradient comes but that hangs on it. ``compute`` runs within the layer's call:
    engines that gather a layer's weights for it (DeepSpeed ZeRO-3, FSDP2) do so once, and see to
    its backward pass, for which the model's output must be part of the loss: :func:`joined`.
    """
    given: list[Tensor] = []
    module = head.module

    def take(_: Any, __: Any, output: Tensor) -> Tensor:
        given.append(output)
        return _Nothing.apply(output)  # type: ignore[no-any-return,no-untyped-call]

    # The hook comes after those of engines, which look at what the layer gives.
    handle = module.register_forward_hook(take)
    module.forward = compute  # type: ignore[method-assign,assignment]
    try:
        yield given
    finally:
        del module.forward
        handle.remove()


@torch.no_grad()
def hidden_states(head: Head, run: Callable[[], object]) -> Tensor:
    """What the head is given, [B, L, H], where ``run`` calls its model, and no logits. No gradient.

    For a model whose weights are whole in this process: elsewhere those of the head are there
    within its call alone.
    """
    found: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        found.append(hidden)
        return hidden.new_zeros(())

    with inside(head, keep):
        run()
    return found[0]


def joined(loss: Tensor, output: Any) -> Tensor:
    """``loss``, of which the model's ``output`` is a part, by zero times its logits."""
    return loss + 0 * output.logits.sum()


class _Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        ctx.save_for_backward(output)
        return output.new_zeros((1, 1, 1))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return torch.zeros_like(output)
