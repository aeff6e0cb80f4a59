"""The second half of a freeze: steps that leave frozen entries as they were."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from freezetrain.regions import Resolved


class StepGuard:
    """Reads the frozen entries before each ``optimizer.step()`` and writes them back after it.

    This defeats whatever moves a weight whose gradient is zero: decoupled weight decay, momentum
    from before the freeze, updates that mix the entries of a tensor (Muon). As the values are
    read before every step, a checkpoint loaded between two steps needs nothing special. Memory:
    one value for each frozen entry, during the step only. Of ``optimizers`` that step one inside
    another, the outermost step counts.

    If a step raises half-way, the values are put back before the next one or by
    :meth:`put_back`, whichever comes first; call that before loading a checkpoint then.
    """

    def __init__(self, optimizers: Sequence[Optimizer], resolved: Sequence[Resolved]) -> None:
        self._resolved = list(resolved)
        self._values: list[Tensor] = []
        self._depth = 0  # an optimizer whose step calls super().step() runs the hooks twice
        # Under torch.compile hooks must stay what they are: Python that runs at its moment.
        take, after_step = map(torch.compiler.disable, (self._take, self._after_step))
        self._handles = [
            handle
            for optimizer in optimizers
            for handle in (
                optimizer.register_step_pre_hook(take),
                optimizer.register_step_post_hook(after_step),
            )
        ]

    def _take(self, *_: Any) -> None:
        if self._depth:  # within another step, or after one that raised
            self._write()
        else:
            self._values = [frozen.entries.read(frozen.parameter) for frozen in self._resolved]
        self._depth += 1

    def _after_step(self, *_: Any) -> None:
        self._write()
        self._depth -= 1
        if not self._depth:
            self._values = []

    def _write(self) -> None:
        for frozen, values in zip(self._resolved, self._values, strict=True):
            frozen.entries.write(frozen.parameter, values)

    def put_back(self) -> None:
        """Put back what a step that raised has left moved; nothing to do after any other."""
        if self._depth:
            self._write()
        self._values, self._depth = [], 0

    def remove(self) -> None:
        """Put back as :meth:`put_back`, and take the hooks away."""
        self.put_back()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
