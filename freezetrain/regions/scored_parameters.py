"""Which parameters of a model are scored."""

from collections.abc import Mapping

from torch import nn

from freezetrain.errors import UserError, near_misses
from freezetrain.regions.blocks import block_parameters, outer_parameters, owner
from freezetrain.regions.resolve import all_parameters


def scored_parameters(
    model: nn.Module,
    method: str,
    parameters: Mapping[str, nn.Parameter] | None,
    embeddings: bool = False,
) -> dict[str, nn.Parameter]:
    """Full name -> parameter: those given, or else what ``method`` can score of the blocks.

    That is the decoder blocks with their norms and biases and, where ``embeddings``, what lies
    outside them: embeddings, the last norm, the head. For ``wanda`` the weights of the blocks'
    linear layers only.

    Raises:
        UserError: no parameter, or one that is not the model's or not of a floating dtype, or, for
            wanda, not the weight of a linear layer.
    """
    if parameters is None:
        parameters = block_parameters(model, norms=True)
        if embeddings and method != "wanda":
            outer = outer_parameters(model)
            parameters |= {name: p for name, p in outer.items() if p.is_floating_point()}
        if method == "wanda":
            parameters = {n: p for n, p in parameters.items() if _is_linear_weight(model, n)}
    if not parameters:
        raise UserError("expected at least one parameter to score, got none")
    known = all_parameters(model)
    for name, parameter in parameters.items():
        if known.get(name) is not parameter:
            raise UserError(
                f"expected parameters of the model to score, {name!r} is not one"
                f"{near_misses(name, known)}"
            )
        if not parameter.is_floating_point():
            raise UserError(
                f"expected parameters of a floating dtype to score, got {parameter.dtype} for "
                f"{name!r}: load the model without quantization"
            )
        if method == "wanda" and not _is_linear_weight(model, name):
            raise UserError(
                f"expected the weights of linear layers to score with wanda, got {name!r} of "
                f"{type(owner(model, name)).__name__}: pass parameters= without it, or another "
                "method"
            )
    return dict(parameters)


def _is_linear_weight(model: nn.Module, name: str) -> bool:
    """Whether ``name`` is the weight of a linear layer: nn.Linear, or transformers' Conv1D."""
    layer = owner(model, name)
    linear = isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"
    return linear and name.rpartition(".")[2] == "weight"
