"""The formulas of the scores: how much the loss of one language depends on each weight.

θ is a weight, g_b the gradient of the mean token loss of batch b, x the inputs of a linear layer.
Every function is pure and works element by element; dtypes mix by torch's promotion, so that fp32
sums with 16-bit weights give fp32 scores.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


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


GRADIENT_METHODS = {
    "taylor": GradientMethod(lambda weight, gradient: gradient, taylor),
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
    return {"wanda": batches**-0.5, "magnitude": 1.0}.get(method, 1 / batches)
