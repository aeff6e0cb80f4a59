"""Scores of a model's weights by their size alone."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn

from freezetrain.regions.base import base_of
from freezetrain.regions.blocks import selection_facts
from freezetrain.regions.resolve import full_shape
from freezetrain.regions.score_methods import magnitude
from freezetrain.regions.scored_parameters import scored_parameters
from freezetrain.regions.scores import Scores


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
