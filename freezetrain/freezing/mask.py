"""The first half of a freeze: gradients that are zero at frozen entries."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from freezetrain.errors import CheckError, UserError
from freezetrain.regions import Resolved


class GradientMask:
    """Zeroes the frozen entries of every gradient before anything else reads it.

    ``resolved`` are the parameters of one live model with their frozen entries. Each that
    requires a gradient gets a post-accumulate-grad hook, moved before any that is there already.
    PyTorch runs it at the end of ``AccumulateGrad::apply``
    (torch/csrc/autograd/functions/accumulate_grad.cpp); DDP's reducer copies the gradient to its
    bucket in a post hook of that node, so after it: what is reduced, clipped and given to the
    optimizer is zero at frozen entries, in each micro-step and on each rank.

    The hook raises UserError for sparse gradients and for ``backward(create_graph=True)``, where
    writing zeros would not tell the graph.
    """

    def __init__(self, resolved: Sequence[Resolved]) -> None:
        self._resolved = list(resolved)
        self._masked: set[int] = set()  # ids of the parameters masked since the last step
        self._check_all = True
        self._handles = []
        for frozen in self._resolved:
            parameter = frozen.parameter
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(partial(self._mask, frozen))
                _move_to_front(parameter._post_accumulate_grad_hooks, handle.id)
                self._handles.append(handle)

    def _mask(self, frozen: Resolved, parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is None:
            return
        if gradient.layout != torch.strided:
            raise UserError(
                f"{frozen.name} has a gradient of layout {gradient.layout}, a region needs dense "
                "ones: build the embedding with sparse=False"
            )
        if gradient.requires_grad:
            raise UserError(
                f"{frozen.name} has frozen entries, which backward(create_graph=True) does not "
                "see: take second derivatives with torch.autograd.grad"
            )
        if not _alone_in_memory(gradient):
            parameter.grad = gradient = gradient.clone()
        frozen.entries.fill(gradient, 0.0)
        self._masked.add(id(parameter))

    def check_all(self) -> None:
        """Have the next step look at every gradient, as the first one does."""
        self._check_all = True

    def before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Optimizer step pre-hook: CheckError if a gradient got past the mask.

        A gradient can come by another way than ``backward()`` (assigned to ``.grad``, or written
        by a communication hook). The values are read on the first step, on the first after
        :meth:`check_all`, and where the hook has not run since the last step. With a closure the
        check follows the closure, which computes the gradients.
        """
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._check()
            return None

        def checked() -> Any:
            loss = closure()
            self._check()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": checked}
        return (args[0], checked, *args[2:]), kwargs

    def _check(self) -> None:
        for frozen in self._resolved:
            gradient = frozen.parameter.grad
            if gradient is None or (not self._check_all and id(frozen.parameter) in self._masked):
                continue
            if frozen.entries.read(gradient).count_nonzero():
                raise CheckError(
                    f"the gradient of {frozen.name} is not zero at its frozen entries: it did not "
                    "come from backward() or was changed after it; freeze before training and "
                    "leave gradients to backward()"
                )
        self._masked.clear()
        self._check_all = False

    def remove(self) -> None:
        """Take the hooks away; gradients that are there already stay masked."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _move_to_front(hooks: dict[int, Any], key: int) -> None:
    """Have PyTorch run hook ``key`` first: one before it may consume the gradient.

    It walks the dict itself, so that OrderedDict.move_to_end would change nothing.
    """
    first = hooks.pop(key)
    others = dict(hooks)
    hooks.clear()
    hooks[key] = first
    hooks.update(others)


def _alone_in_memory(tensor: Tensor) -> bool:
    """Whether nothing else holds the memory of ``tensor``, so that it may be written in place.

    Autograd hands the very tensor that it computed to ``.grad`` when nothing else holds that
    tensor, but a view of its memory may still wait to flow on to other nodes: with
    ``x + position.unsqueeze(0)``, zeros written into ``position.grad`` would reach the gradient
    of ``x``. The count of 2 is ``tensor`` and the Python object made here.
    """
    count_uses = getattr(torch._C, "_storage_Use_Count", None)
    return count_uses is not None and count_uses(tensor.untyped_storage()._cdata) == 2
