"""The formulas of the scores, and which parameters are scored.

θ is a weight, g_b the gradient of the mean loss of batch b, in nats per token; all tensors have the
shape of the parameter. Taylor scores are thus in nats per token, summed over batches.
"""

from collections.abc import Callable, Mapping
from math import sqrt
from typing import NamedTuple

from torch import Tensor, nn

from freezetrain.errors import UserError, near_misses
from freezetrain.regions import block_parameters
from freezetrain.regions.blocks import outer_parameters, owner
from freezetrain.regions.parameters import all_parameters


def taylor(weight: Tensor, gradient_sum: Tensor) -> Tensor:
    """|θ · Σ_b g_b|, the absolute value taken once, after the sum over all of a language's data.

    To first order, how much the loss changes when the weight is set to zero. It is what the
    released code of Zhang et al. 2024 (arXiv 2402.14700) computes; the criterion is Molchanov
    et al. 2017 (arXiv 1611.06440).
    """
    return (weight * gradient_sum).abs_()


def taylor_abs(weight: Tensor, gradient: Tensor) -> Tensor:
    """|θ · g_b|, to be summed over batches: batches that pull in opposite ways do not cancel.

    Sensitivity of Zhang et al. 2022 (PLATON, arXiv 2206.12562), without its smoothing.
    """
    return (weight * gradient).abs_()


def fisher(gradient: Tensor) -> Tensor:
    """g_b², to be summed over batches: the diagonal of the empirical Fisher information.

    Elastic weight consolidation, Kirkpatrick et al. 2017 (arXiv 1612.00796); here a batch stands
    where the paper has one sample.
    """
    return gradient.square()


def magnitude(weight: Tensor) -> Tensor:
    """|θ|, which knows no language."""
    return weight.abs()


def wanda(weight: Tensor, input_norm: Tensor, input_dim: int) -> Tensor:
    """|θ| · ‖x‖₂, the norm of each input feature [in] taken over all tokens.

    ``input_dim`` is the dimension of ``weight`` that runs over input features. Sun et al. 2023
    (Wanda, arXiv 2306.11695); the score of Source-Shielded Updates (arXiv 2512.04844).
    """
    shape = [1] * weight.ndim
    shape[input_dim] = -1
    return weight.abs() * input_norm.view(shape)


class GradientMethod(NamedTuple):
    """A score made of one sum over batches: ``finish(θ, Σ_b term(θ, g_b))``."""

    term: Callable[[Tensor, Tensor], Tensor]
    finish: Callable[[Tensor, Tensor], Tensor]
    linear: bool = False
    """Whether the term of a sum of gradients is the sum of their terms."""


GRADIENT_METHODS = {
    "taylor": GradientMethod(lambda weight, gradient: gradient, taylor, linear=True),
    "taylor-abs": GradientMethod(taylor_abs, lambda weight, total: total),
    "fisher": GradientMethod(
        lambda weight, gradient: fisher(gradient), lambda weight, total: total
    ),
}

METHODS = (*GRADIENT_METHODS, "magnitude", "wanda")


def per_batch(method: str, batches: float) -> float:
    """The factor that makes scores of ``batches`` batches comparable with scores of one.

    Sums over batches grow with their number, wanda's norm with its square root, magnitude not.
    """
    if method == "magnitude":
        return 1.0
    return 1 / sqrt(batches) if method == "wanda" else 1 / batches


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
