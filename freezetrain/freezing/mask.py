"""The first half of a freeze: gradients that are zero at frozen entries."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from freezetrain.errors import CheckError, UserError
from freezetrain.regions import Resolved


class GradientMask:
    """Zeroes the frozen entries of every gradient before anything else reads it.

    ``resolved`` are the parameters of one live model with their frozen entries. Each gets a
    post-accumulate-grad hook, moved before any that is there already.
    PyTorch runs it at the end of ``AccumulateGrad::apply``
    (torch/csrc/autograd/functions/accumulate_grad.cpp); DDP's reducer copies the gradient to its
    bucket in a post hook of that node, so after it: what is reduced, clipped and given to the
    optimizer is zero at frozen entries, in each micro-step and on each rank.

    The hook raises UserError for sparse gradients and for ``backward(create_graph=True)``, where
    writing zeros would not tell the graph.
    """

    def __init__(self, resolved: Sequence[Resolved]) -> None:
        self._resolved = list(resolved)
        self._accumulating: set[int] = set()  # ids of parameters that have a gradient to add to
        self._handles: list[RemovableHandle] = []
        for frozen in self._resolved:
            self._register(frozen)

    def _register(self, frozen: Resolved) -> None:
        parameter = frozen.parameter
        trainable = parameter.requires_grad
        parameter.requires_grad_(True)  # hooks need it, and it may be set after the freeze
        # Under torch.compile hooks must stay what they are: Python that runs at its moment.
        note = torch.compiler.disable(partial(self._note, parameter))
        mask = torch.compiler.disable(partial(self._mask, frozen))
        self._handles.append(parameter.register_hook(note))
        self._handles.append(parameter.register_post_accumulate_grad_hook(mask))
        _move_to_front(parameter._post_accumulate_grad_hooks, self._handles[-1].id)
        parameter.requires_grad_(trainable)

    def _note(self, parameter: Tensor, _: Tensor) -> None:
        """Before accumulation: autograd adds to a gradient that is there, else it brings one."""
        if parameter.grad is None:
            self._accumulating.discard(id(parameter))
        else:
            self._accumulating.add(id(parameter))

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
        # One that was there stays the caller's tensor, which may be a view of a buffer of theirs.
        if id(parameter) not in self._accumulating and not _alone_in_memory(gradient):
            parameter.grad = gradient = gradient.clone()
        frozen.entries.fill(gradient, 0.0)

    def before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Optimizer step pre-hook: CheckError if a gradient got past the mask.

        A gradient can come by another way than ``backward()`` (assigned to ``.grad``, or written
        by a communication hook) or be changed after it. With a closure the check follows the
        closure, which computes the gradients. It costs a read of the frozen entries and, on a
        GPU, one synchronization a step.
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
        found = [
            (frozen, frozen.entries.read(frozen.parameter.grad).count_nonzero())
            for frozen in self._resolved
            if frozen.parameter.grad is not None
        ]
        if found and torch.stack([count.to(found[0][1].device) for _, count in found]).any():
            name = next(frozen.name for frozen, count in found if count)
            raise CheckError(
                f"the gradient of {name} is not zero at its frozen entries: it did not come from "
                "backward(), was changed after it, or is NaN; freeze before training and leave "
                "gradients to backward()"
            )

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
