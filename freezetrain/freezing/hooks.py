"""The two halves of a freeze, as hooks: gradients that are masked, and steps that are guarded."""

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from freezetrain.errors import UserError
from freezetrain.freezing.layout import Shard

F = TypeVar("F", bound=Callable[..., Any])


def not_traced(hook: F) -> F:
    """Under torch.compile a hook must stay what it is: Python that runs at its moment."""
    disabled: F = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return disabled


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
        note = not_traced(partial(self._note, shard.number, parameter))
        mask = not_traced(partial(self._mask, shard))
        hooked: Any = parameter  # whose methods torch leaves without types
        self._handles.append(hooked.register_hook(note))
        self._handles.append(hooked.register_post_accumulate_grad_hook(mask))
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


class RunningSteps:
    """The optimizer steps that have begun and not ended, outermost first.

    They may run within one another: of an optimizer inside another, of a base class
    (``super().step()``). A step that raises has no post-hook. It is found out when its optimizer
    steps again, more often within itself than the class can, or another that holds tensors does.
    """

    def __init__(self, inner: Sequence[Optimizer]) -> None:
        """``inner``: the optimizers that hold tensors, none of which steps within another."""
        self._inner = list(inner)
        self._running: list[Optimizer] = []

    def __contains__(self, optimizer: Optimizer) -> bool:
        return optimizer in self._running

    def begin(self, optimizer: Optimizer) -> bool:
        """For the step's pre-hook; whether it runs within no other."""
        for place, other in enumerate(self._running):
            if optimizer in self._inner and other in self._inner and other is not optimizer:
                del self._running[place:]  # it raised
                break
        if self._running.count(optimizer) >= steps_of_class(optimizer):
            del self._running[self._running.index(optimizer) :]  # they raised
        self._running.append(optimizer)
        return len(self._running) == 1

    def end(self, optimizer: Optimizer) -> bool:
        """For the post-hook of a step that has begun; whether it was the outermost."""
        while self._running.pop() is not optimizer:
            pass  # a step within it, which raised
        return not self._running


class StepGuard:
    """Reads the frozen entries before each ``optimizer.step()`` and writes them back after it.

    This defeats whatever moves a weight whose gradient is zero: decoupled weight decay, momentum
    from before the freeze, updates that mix the entries of a tensor (Muon). As the values are
    read before every step, a checkpoint loaded between two steps needs nothing special. Memory:
    one value for each frozen entry that this rank holds, during the step only.

    Steps may run within one another (:class:`RunningSteps`). Values are written back after each,
    and dropped after the outermost. Those of a step that raised are kept, and written back before
    the next step or by :meth:`put_back`: call that before loading a checkpoint then.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        inner: Sequence[Optimizer],
        shards: Sequence[Shard],
        piecewise: bool = False,
    ) -> None:
        self.step = 0
        """Training steps begun so far."""
        self.entered = 0
        """Optimizer steps begun so far, without those within others. Where an engine steps its
        tensors one after the other, or there are several optimizers (``piecewise``), several make
        up a training step: one ends where an optimizer comes to a tensor for the second time."""
        self.seconds = 0.0
        """Spent on it by this host; a GPU does what was queued later."""
        self._piecewise = piecewise
        self._inner = list(inner)
        self._shards = list(shards)
        self._running = RunningSteps(inner)
        self._taken: list[tuple[Shard, Tensor]] = []  # while a step runs: its frozen values
        # Ids of optimizers and tensors that have had their turn in this step.
        self._stepped: set[tuple[int, int]] = set()
        take, after_step = not_traced(self._take), not_traced(self._after_step)
        self._handles: list[RemovableHandle] = []
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_pre_hook(take))
            self._handles.append(optimizer.register_step_post_hook(after_step))
            # Before hooks that are there already: one may copy the weights, as for an average.
            hooks: Any = optimizer._optimizer_step_post_hooks  # an OrderedDict
            hooks.move_to_end(self._handles[-1].id, last=False)

    def _take(self, optimizer: Optimizer, *_: Any) -> None:
        start = perf_counter()
        self._write()  # what a step around this one has moved, or one that raised
        if self._running.begin(optimizer):
            self._taken = []
            self._count(optimizer)
        # One around the inner optimizers may hold other tensors and still move these.
        inner = optimizer in self._inner
        taken = {id(shard) for shard, _ in self._taken}
        self._taken += [
            (shard, shard.read())
            for shard in (in_step(optimizer, self._shards) if inner else self._shards)
            if id(shard) not in taken
        ]
        self.seconds += perf_counter() - start

    def _count(self, optimizer: Optimizer) -> None:
        held = {
            (id(optimizer), id(tensor))
            for group in optimizer.param_groups
            for tensor in group["params"]
        } or {(id(optimizer), 0)}
        self.entered += 1
        if not self._piecewise or not self.step or held & self._stepped:
            self.step += 1
            self._stepped = set()
        self._stepped |= held

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        start = perf_counter()
        if optimizer not in self._running:
            raise UserError(
                f"a step of {type(optimizer).__name__} ended whose frozen entries are no longer "
                "kept: it calls itself, or verify() was called while it ran; verify between steps"
            )
        self._write()
        if self._running.end(optimizer):
            self._taken = []
        self.seconds += perf_counter() - start

    def _write(self) -> None:
        for shard, values in self._taken:
            shard.write(values)

    def put_back(self) -> None:
        """Put back what a step that raised has left moved; nothing to do after any other."""
        self._write()
        self._running, self._taken = RunningSteps(self._inner), []

    def remove(self) -> None:
        """Put back as :meth:`put_back`, and take the hooks away."""
        self.put_back()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def in_step(optimizer: Optimizer, shards: Sequence[Shard]) -> list[Shard]:
    """Those of ``shards`` that a step of ``optimizer`` can move now.

    ZeRO lets its optimizer see one flat partition at a time.
    """
    held = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
    return [shard for shard in shards if id(shard.owner) in held]


def steps_of_class(optimizer: Optimizer) -> int:
    """How many steps of ``optimizer`` may run within one another, each calling ``super().step()``.

    PyTorch marks each step function that runs hooks (``Optimizer.profile_hook_step``).
    """
    steps = [vars(kind).get("step") for kind in type(optimizer).__mro__]
    return max(1, sum(bool(getattr(step, "hooked", False)) for step in steps))
