"""Single weights: given by name and index, or found by their scores."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from freezetrain.errors import UserError, near_misses
from freezetrain.regions import Base, Entries, Region
from freezetrain.regions.parameters import all_parameters, full_shape
from freezetrain.scoring.scores import Scores


@dataclass(frozen=True)
class Weight:
    """One entry of a parameter: ``index`` has a place, from 0, for each of its dimensions."""

    name: str
    index: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}[{', '.join(map(str, self.index))}]"


def top_weights(scores: Scores, count: int, norms: bool = True) -> list[tuple[Weight, float]]:
    """The ``count`` weights with the highest scores of the whole model, highest first.

    Ties go to the name that sorts first, then to the lower index. Memory: a few copies of one
    tensor's scores. ``norms``: whether the weights of norms (``scores.made["norms"]``) take part;
    those outside the decoder blocks never do.

    Raises:
        UserError: a count below 1.
    """
    if count < 1:
        raise UserError(f"expected a number of weights of 1 or more, got {count}")
    best: list[tuple[float, str, int]] = []  # minus the score, so that all three sort upwards
    shapes = {}
    for name in sorted(scores.selectable(norms)):
        flat = scores[name].flatten()
        shapes[name] = scores[name].shape
        if not flat.numel():
            continue
        limit = flat.topk(min(count, flat.numel())).values[-1]
        above = (flat > limit).nonzero().flatten()
        ties = (flat == limit).nonzero().flatten()[: count - len(above)]
        places = torch.cat([above, ties])
        best += [(-flat[place].item(), name, int(place)) for place in places]
        best = sorted(best)[:count]
    return [
        (Weight(name, tuple(int(i) for i in torch.unravel_index(torch.tensor(at), shapes[name]))),
         -minus)
        for minus, name, at in best
    ]  # fmt: skip


def region_of(model: nn.Module, weights: Iterable[Weight], base: Base | None = None) -> Region:
    """The region that consists of ``weights``.

    Raises:
        UserError: a name that the model does not have, an index that its parameter does not have,
            or a weight named twice.
    """
    parameters = all_parameters(model)
    flat: dict[str, list[int]] = defaultdict(list)
    for weight in weights:
        if weight.name not in parameters:
            raise UserError(
                f"the model has no parameter {weight.name!r}{near_misses(weight.name, parameters)}"
            )
        flat[weight.name].append(_flat(weight, full_shape(parameters[weight.name])))
    entries = {
        name: Entries.from_indices(full_shape(parameters[name]), places)
        for name, places in flat.items()
    }
    return Region(entries, base, {"operation": "weights"})


def _flat(weight: Weight, shape: Sequence[int]) -> int:
    """Index of the weight in its flattened parameter."""
    within = all(0 <= place < size for place, size in zip(weight.index, shape, strict=False))
    if len(weight.index) != len(shape) or not within:
        raise UserError(
            f"expected an index within the shape {list(shape)} of {weight.name!r}, counted from "
            f"0, got {list(weight.index)}"
        )
    flat = 0
    for place, size in zip(weight.index, shape, strict=True):
        flat = flat * size + place
    return flat
