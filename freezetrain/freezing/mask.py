"""The first half of a freeze: gradients that are zero at frozen entries."""

from collections.abc import Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from freezetrain.errors import UserError
from freezetrain.freezing.shard import Shard


class GradientMask:
    """Zeroes the frozen entries of every gradient before anything else reads it.

    ``shards`` are parameters of one live model with their frozen entries. Each gets a
    post-accumulate-grad hook, moved before any that is there already.
    PyTorch runs it at the end of ``AccumulateGrad::apply``
    (torch/csrc/autograd/functions/accumulate_grad.cpp); DDP's reducer copies the gradient to its
    bucket in a post hook of that node, so after it, and DeepSpeed reduces in hooks of the same
    kind: what is reduced, clipped and given to the optimizer is zero at frozen entries, in each
    micro-step and on each rank. FSDP2 calls these hooks itself, once a shard is reduced.

    The hook raises UserError for sparse gradients and for ``backward(create_graph=True)``, where
    writing zeros would not tell the graph.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.fired: set[int] = set()
        """Numbers of the shards that have had a gradient masked."""
        self.seconds = 0.0
        """Spent on it by this host; a GPU does what was queued later."""
        self._entries = {shard.number: shard.entries for shard in shards}
        self._accumulating: set[int] = set()  # numbers of those that have a gradient to add to
        self._handles: list[RemovableHandle] = []
        try:
            for shard in shards:
                self._register(shard)
        except BaseException:
            self.remove()
            raise

    def _register(self, shard: Shard) -> None:
        parameter = shard.owner
        if not (parameter.is_floating_point() or parameter.is_complex()):
            return  # it never has a gradient
        trainable = parameter.requires_grad
        parameter.requires_grad_(True)  # hooks need it, and it may be set after the freeze
        # Under torch.compile hooks must stay what they are: Python that runs at its moment.
        note = torch.compiler.disable(partial(self._note, shard.number, parameter))
        mask = torch.compiler.disable(partial(self._mask, shard))
        self._handles.append(parameter.register_hook(note))
        self._handles.append(parameter.register_post_accumulate_grad_hook(mask))
        _move_to_front(parameter._post_accumulate_grad_hooks, self._handles[-1].id)
        parameter.requires_grad_(trainable)

    def _note(self, number: int, parameter: Tensor, _: Tensor) -> None:
        """Before accumulation: autograd adds to a gradient that is there, else it brings one."""
        if parameter.grad is None:
            self._accumulating.discard(number)
        else:
            self._accumulating.add(number)

    def _mask(self, shard: Shard, parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is None:
            return
        start = perf_counter()
        if gradient.layout != torch.strided:
            raise UserError(
                f"{shard.name} has a gradient of layout {gradient.layout}, a region needs dense "
                "ones: build the embedding with sparse=False"
            )
        if gradient.requires_grad:
            raise UserError(
                f"{shard.name} has frozen entries, which backward(create_graph=True) does not "
                "see: take second derivatives with torch.autograd.grad"
            )
        # A shard's gradient (FSDP2) is a part of a buffer that autograd does not know. One that
        # was there stays the caller's tensor, which may be a view of a buffer of theirs.
        private = isinstance(gradient, DTensor) or shard.number in self._accumulating
        if not private and not _alone_in_memory(gradient):
            parameter.grad = gradient = gradient.clone()
        here = shard.of(gradient)
        if isinstance(gradient, DTensor) and here.device.type == "cpu" and here.is_pinned():
            # Offloaded by FSDP2: older torch calls hooks while this copy is still under way.
            torch.accelerator.current_stream().synchronize()
        entries = self._entries[shard.number].for_training(here.device)
        self._entries[shard.number] = entries
        entries.fill(here, 0.0)
        self.fired.add(shard.number)
        self.seconds += perf_counter() - start

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
