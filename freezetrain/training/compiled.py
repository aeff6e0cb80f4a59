"""Decoder blocks by torch.compile."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn

from freezetrain.regions import decoder_blocks


def compile_blocks(model: nn.Module) -> None:
    """Have each decoder block of ``model`` run as torch.compile makes it, while it trains.

    A block at a time, as they are alike and are compiled once for all; what engines hang on a
    block (FSDP2's gathering, gradient checkpointing) stays outside. Evaluation goes on without:
    its batches have many shapes, each of which would be compiled anew.
    """
    for _, block in decoder_blocks(model):
        block.forward = _while_training(block, block.forward)


def _while_training(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    compiled = torch.compile(forward)

    @wraps(forward)
    def run(*inputs: Any, **options: Any) -> Any:
        return (compiled if block.training else forward)(*inputs, **options)

    return run
