"""Memory of a CPU that the C library keeps to itself, given back to the system."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

from torch import nn

from freezetrain.regions import decoder_blocks


@contextmanager
def given_back(model: nn.Module) -> Iterator[None]:
    """While this lasts, free memory goes back: before the head, after each block's backward pass.

    Gradients, which stay, are made between activations, which go: what the C library keeps of the
    gaps was a gigabyte for a model of 270 million weights. For a model on a CPU; nothing where the
    library is not GNU's.
    """
    trim = _trim()

    def done(*_: Any) -> None:
        trim(0)

    with ExitStack() as stack:
        head = model.get_output_embeddings() if trim is not None else None  # type: ignore[operator]
        if head is not None:
            stack.callback(head.register_forward_pre_hook(done).remove)
        for _, block in decoder_blocks(model) if trim is not None else ():
            # The first of a block is the last to get its gradient, or nearly so.
            first = next((p for p in block.parameters() if p.requires_grad), None)
            if first is not None:
                stack.callback(first.register_post_accumulate_grad_hook(done).remove)  # type: ignore[no-untyped-call]
        yield


@cache
def _trim() -> Any:
    # Elsewhere there is none by that name, or no library without a name.
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
