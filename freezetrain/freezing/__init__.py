"""Freezing a region exactly, in pure PyTorch, and proving it."""

from freezetrain.freezing.freeze import Freeze, freeze
from freezetrain.freezing.verify import (
    Comparison,
    Offender,
    compare_checkpoints,
    compare_weights,
)

__all__ = [
    "Comparison",
    "Freeze",
    "Offender",
    "compare_checkpoints",
    "compare_weights",
    "freeze",
]
