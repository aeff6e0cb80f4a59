"""Low-rank adapters."""

import math
from dataclasses import dataclass, field

from freezetrain.recipe.check import check


@dataclass
class Lora:
    """Train low-rank adapters of linear layers alone, and add them to the weights at the end.

    A layer computes W x + alpha / rank x B A x, with W the base's and B zero at first: Hu et al.
    2021, arXiv 2106.09685. Embeddings, head, norms and biases stay the base's.
    """

    rank: int = 16
    """Rows of A, columns of B."""
    alpha: float | None = None
    """Adapters are scaled by alpha / rank. None: twice the rank."""
    dropout: float = 0.0
    """Share of an adapter's inputs that are dropped in training, in [0, 1)."""
    targets: list[str] = field(default_factory=list)
    """Names of the linear layers, or how they end, that get one: q_proj, mlp.down_proj. Empty: all
    in the decoder blocks (fused experts are none)."""

    def __post_init__(self) -> None:
        check(self.rank >= 1, "lora.rank", "1 or more", self.rank)
        good = self.alpha is None or (math.isfinite(self.alpha) and self.alpha > 0)
        check(good, "lora.alpha", "a number above 0", self.alpha)
        check(0 <= self.dropout < 1, "lora.dropout", "in [0, 1)", self.dropout)

    @property
    def scale(self) -> float:
        """What the product of A and B is multiplied by."""
        return (2 * self.rank if self.alpha is None else self.alpha) / self.rank
