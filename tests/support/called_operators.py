"""Which operators of PyTorch are called."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Called(TorchDispatchMode):
    """``names``: of the operators that were called, without their overload; ``made``: number of
    values → names of those that made a new tensor of so many, in floating point."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.made: dict[int, list[str]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        self.names.add(name)
        result = function(*args, **(kwargs or {}))
        known = {id(arg) for arg in args}
        new = isinstance(result, torch.Tensor) and id(result) not in known and not result._is_view()
        if new and result.is_floating_point() and not function.is_view:
            self.made.setdefault(result.numel(), []).append(name)
        return result
