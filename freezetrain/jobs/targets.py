"""What is changed alone: single weights, dimensions, and random ones to compare them with."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from freezetrain.regions import Region
from freezetrain.regions.draw import draw_indices
from freezetrain.regions.residual import hidden_size, weights_of_dimension
from freezetrain.regions.resolve import all_parameters
from freezetrain.regions.weights import Weight, region_of


@dataclass(frozen=True)
class Target:
    """What is changed alone: a weight, or the weights of a dimension."""

    what: str
    region: Region
    weight: Weight | None = None
    score: float | None = None
    dimension: int | None = None
    parameter: str | None = None  # of a dimension; None: all of the decoder blocks


def weight_targets(
    model: nn.Module, weights: Sequence[tuple[Weight, float | None]]
) -> list[Target]:
    """Weights with their scores, where they have one; each once, with the first score told."""
    scores: dict[Weight, float | None] = {}
    for weight, score in weights:
        if scores.get(weight) is None:
            scores[weight] = score
    return [
        Target(str(weight), region_of(model, [weight]), weight=weight, score=score)
        for weight, score in scores.items()
    ]


def dimension_targets(
    model: nn.Module, dimensions: Sequence[int], patterns: Sequence[str]
) -> list[Target]:
    """All weights of each dimension together or, given patterns, those of each parameter alone."""
    found = []
    for dimension in dimensions:
        region = weights_of_dimension(model, dimension, patterns or None)
        what = f"dimension {dimension} of"
        if not patterns:
            found.append(Target(f"{what} all decoder blocks", region, dimension=dimension))
        for name, entries in region.items() if patterns else []:
            alone = Region({name: entries})
            found.append(Target(f"{what} {name}", alone, dimension=dimension, parameter=name))
    return found


def random_targets(model: nn.Module, targets: Sequence[Target], seed: int) -> list[Target]:
    """As many random weights of the same parameters, and random dimensions, none of ``targets``.

    Fewer where a parameter, or the model, has no more. The same on every machine.
    """
    weights: dict[str, list[int]] = defaultdict(list)
    dimensions: dict[str | None, list[int]] = defaultdict(list)
    for target in targets:
        if target.weight is not None:
            (entries,) = target.region.values()
            weights[target.weight.name] += entries.indices().tolist()
        elif target.dimension is not None:
            dimensions[target.parameter].append(target.dimension)
    found = []
    parameters = all_parameters(model)
    for name, taken in weights.items():
        shape = parameters[name].shape
        drawn = [
            Weight(name, tuple(int(i) for i in torch.unravel_index(torch.tensor(place), shape)))
            for place in _others(shape.numel(), taken, seed, name)
        ]
        found += weight_targets(model, [(weight, None) for weight in drawn])
    for parameter, taken in dimensions.items():
        others = _others(hidden_size(model), taken, seed, parameter or "")
        found += dimension_targets(model, others, [] if parameter is None else [parameter])
    return found


def _others(total: int, taken: Sequence[int], seed: int, name: str) -> list[int]:
    """As many of the places below ``total`` as are taken, at random among the rest."""
    rest = total - len(taken)
    places = draw_indices(rest, min(rest, len(taken)), seed, name)
    for one in sorted(taken):
        places = places + (places >= one)
    return places.tolist()
