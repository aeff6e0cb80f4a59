"""How much of each tensor, each layer and the whole model a region holds."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Coverage:
    """Fractions between 0 and 1 of the entries that are in the region."""

    tensors: dict[str, float]
    """Parameter name -> fraction."""
    layers: dict[int, float]
    """Layer, the first integer in a parameter's dotted name -> fraction over its parameters."""
    model: float
    """Fraction over all parameters."""


def coverage(counts: Mapping[str, int], numels: Mapping[str, int]) -> Coverage:
    """Coverage of ``counts`` entries in parameters of ``numels`` entries.

    A name that only ``numels`` has counts as no entries of that parameter.
    """
    layer_count: dict[int, int] = defaultdict(int)
    layer_numel: dict[int, int] = defaultdict(int)
    for name, numel in numels.items():
        layer = layer_of(name)
        if layer is not None:
            layer_count[layer] += counts.get(name, 0)
            layer_numel[layer] += numel
    return Coverage(
        {name: _ratio(counts.get(name, 0), numel) for name, numel in numels.items()},
        {layer: _ratio(layer_count[layer], layer_numel[layer]) for layer in sorted(layer_numel)},
        _ratio(sum(counts.values()), sum(numels.values())),
    )


def layer_of(name: str) -> int | None:
    """3 for ``model.layers.3.mlp.experts.0.weight``; None without an integer component."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def _ratio(count: int, numel: int) -> float:
    return count / numel if numel else 0.0
