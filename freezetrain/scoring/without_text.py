"""Scores that need no text: absolute values of the weights, and random numbers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from freezetrain.regions import block_parameters
from freezetrain.regions.base import base_of
from freezetrain.regions.blocks import selection_facts
from freezetrain.regions.entries import generator_of
from freezetrain.regions.parameters import full_shape
from freezetrain.scoring.methods import magnitude, scored_parameters
from freezetrain.scoring.scores import OnDemand, Scores
from freezetrain.scoring.selection import Unit, unit_dims


def magnitude_scores(
    model: nn.Module, full: Callable[[nn.Parameter], Tensor] | None = None
) -> Scores:
    """|θ| of the decoder blocks' weights, taken when it is asked for.

    ``full`` gives the whole of a parameter that ``model`` does not hold itself, as for
    :func:`~freezetrain.regions.base.fingerprint`. UserError for a model without decoder blocks.
    """
    parameters = scored_parameters(model, "magnitude", None)

    def make(name: str) -> Tensor:
        parameter = parameters[name]
        return magnitude(full(parameter) if full else parameter.detach())

    made = {"method": "magnitude", "batches": 1, **selection_facts(model, parameters)}
    tensors = OnDemand(parameters, lambda name: full_shape(parameters[name]), make)
    return Scores(tensors, base_of(model, full), made)


def random_scores(
    model: nn.Module,
    seed: int,
    unit: Unit = "entry",
    full: Callable[[nn.Parameter], Tensor] | None = None,
) -> Scores:
    """A number in [0, 1) for each ``unit`` of the decoder blocks' weights, drawn when asked for.

    Selecting by them draws entries, rows, columns or tensors evenly. All entries of a unit share
    its number: a mean of many draws would lie nearer to 1/2 in larger units, and these would seldom
    be among the highest where units compete beyond one tensor. The draws depend on ``seed`` and on
    the parameter's name alone. ``full`` as for :func:`magnitude_scores`. UserError for a model
    without decoder blocks.
    """
    parameters = block_parameters(model, norms=True)
    facts = selection_facts(model, parameters)
    shapes = {name: full_shape(parameter) for name, parameter in parameters.items()}

    def draw(name: str) -> Tensor:
        shared = unit_dims(shapes[name], name, name in facts["transposed"], unit) or ()
        sizes = [1 if dim in shared else size for dim, size in enumerate(shapes[name])]
        return torch.rand(sizes, generator=generator_of(seed, name)).expand(shapes[name])

    made = {"method": "random", "seed": seed, "batches": 1, **facts}
    return Scores(OnDemand(shapes, shapes.__getitem__, draw), base_of(model, full), made)
