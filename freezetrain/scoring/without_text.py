"""Scores that need no text: absolute values of the weights, and random numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from freezetrain.regions import block_parameters
from freezetrain.regions.base import base_of
from freezetrain.regions.blocks import selection_facts
from freezetrain.regions.entries import generator_of
from freezetrain.regions.parameters import full_shape
from freezetrain.scoring.methods import magnitude, scored_parameters
from freezetrain.scoring.scores import Scores
from freezetrain.scoring.selection import Unit, unit_dims


def magnitude_scores(
    model: nn.Module, full: Callable[[nn.Parameter], Tensor] | None = None
) -> Scores:
    """|θ| of the decoder blocks' weights, taken when it is asked for; no text is needed.

    ``full`` gives the whole of a parameter that ``model`` does not hold itself, as for
    :func:`~freezetrain.regions.base.fingerprint`. UserError for a model without decoder blocks.
    """
    parameters = scored_parameters(model, "magnitude", None)
    made = {
        "method": "magnitude",
        "batches": 1,
        **selection_facts(model, parameters),
    }
    return Scores(_Magnitudes(parameters, full), base_of(model, full), made)


class _Magnitudes(Mapping[str, Tensor]):
    """Name -> |θ| as it is now."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        full: Callable[[nn.Parameter], Tensor] | None,
    ) -> None:
        self._parameters = parameters
        self._full = full

    def shape(self, name: str) -> tuple[int, ...]:
        return full_shape(self._parameters[name])

    def __getitem__(self, name: str) -> Tensor:
        parameter = self._parameters[name]
        return magnitude(self._full(parameter) if self._full else parameter.detach())

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


def random_scores(
    model: nn.Module,
    seed: int,
    unit: Unit = "entry",
    full: Callable[[nn.Parameter], Tensor] | None = None,
) -> Scores:
    """A number in [0, 1) for each ``unit`` of the decoder blocks' weights, drawn when asked for.

    All entries of a unit share it: a mean of many draws would lie nearer to 1/2 in larger units,
    and these would seldom be among the highest where units compete beyond one tensor. The draws
    depend on ``seed`` and on the parameter's name alone. ``full`` as for
    :func:`~freezetrain.regions.base.fingerprint`. UserError for a model without decoder blocks.
    """
    parameters = block_parameters(model, norms=True)
    facts = selection_facts(model, parameters)
    dims = {
        name: unit_dims(full_shape(parameter), name, name in facts["transposed"], unit) or ()
        for name, parameter in parameters.items()
    }
    shapes = {name: full_shape(parameter) for name, parameter in parameters.items()}
    made = {"method": "random", "seed": seed, "batches": 1, **facts}
    return Scores(_Draws(shapes, dims, seed), base_of(model, full), made)


class _Draws(Mapping[str, Tensor]):
    """Name -> random numbers, the same each time."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        dims: Mapping[str, Sequence[int]],
        seed: int,
    ) -> None:
        self._shapes = shapes
        self._dims = dims  # along which all entries share one number
        self._seed = seed

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def __getitem__(self, name: str) -> Tensor:
        shape, dims = self._shapes[name], self._dims[name]
        drawn = [1 if dim in dims else size for dim, size in enumerate(shape)]
        return torch.rand(drawn, generator=generator_of(self._seed, name)).expand(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)
