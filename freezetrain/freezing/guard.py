"""The second half of a freeze: steps that leave frozen entries as they were."""

import inspect
import sys
from collections.abc import Sequence
from time import perf_counter
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from freezetrain.freezing.shard import Shard

_TORCH = inspect.getfile(Optimizer)  # where steps run their hooks


class StepGuard:
    """Reads the frozen entries before each ``optimizer.step()`` and writes them back after it.

    This defeats whatever moves a weight whose gradient is zero: decoupled weight decay, momentum
    from before the freeze, updates that mix the entries of a tensor (Muon). As the values are
    read before every step, a checkpoint loaded between two steps needs nothing special. Memory:
    one value for each frozen entry that this rank holds, during the step only. Of ``optimizers``
    that step one inside another, the outermost step counts.

    If a step raises half-way, the values are put back before the next one or by
    :meth:`put_back`, whichever comes first; call that before loading a checkpoint then.
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
        tensors one after the other (``piecewise``), several make up a training step."""
        self.seconds = 0.0
        """Spent on it by this host; a GPU does what was queued later."""
        self._piecewise = piecewise
        self._inner = list(inner)
        self._shards = list(shards)
        self._taken: list[tuple[Shard, Tensor]] = []
        self._depth = 0  # an optimizer whose step calls super().step() runs the hooks twice
        self._outer: FrameType | None = None  # of the outermost step, while that runs
        self._stepped: set[int] = set()  # ids of the tensors that have had their turn in this step
        # Under torch.compile hooks must stay what they are: Python that runs at its moment.
        take, after_step = map(torch.compiler.disable, (self._take, self._after_step))
        self._handles: list[RemovableHandle] = []
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_pre_hook(take))
            self._handles.append(optimizer.register_step_post_hook(after_step))
            # Before hooks that are there already: one may copy the weights, as for an average.
            hooks: Any = optimizer._optimizer_step_post_hooks  # an OrderedDict
            hooks.move_to_end(self._handles[-1].id, last=False)

    def _take(self, optimizer: Optimizer, *_: Any) -> None:
        start = perf_counter()
        running = _steps_on_the_stack()
        if self._outer is not None and self._outer not in running:
            self.put_back()  # that step raised, so its post-hook never ran
        if self._depth:  # within another step
            self._write()
        else:
            self._outer = running[0] if running else None
            self._count(optimizer)
            # One around the inner optimizers may hold other tensors and still move these.
            inner = any(optimizer is one for one in self._inner)
            stepped = in_step(optimizer, self._shards) if inner else self._shards
            self._taken = [(shard, shard.read()) for shard in stepped]
        self._depth += 1
        self.seconds += perf_counter() - start

    def _count(self, optimizer: Optimizer) -> None:
        held = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
        self.entered += 1
        if not self._piecewise or not self.step or held & self._stepped:
            self.step += 1
            self._stepped = set()
        self._stepped |= held

    def _after_step(self, *_: Any) -> None:
        start = perf_counter()
        self._write()
        self._depth -= 1
        if not self._depth:
            self._taken, self._outer = [], None
        self.seconds += perf_counter() - start

    def _write(self) -> None:
        for shard, values in self._taken:
            shard.write(values)

    def put_back(self) -> None:
        """Put back what a step that raised has left moved; nothing to do after any other."""
        if self._depth:
            self._write()
        self._taken, self._depth, self._outer = [], 0, None

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


def _steps_on_the_stack() -> list[FrameType | None]:
    """Frames in which torch runs the hooks of a step, innermost first."""
    frames: list[FrameType | None] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == _TORCH:
            frames.append(frame)
        frame = frame.f_back
    return frames
