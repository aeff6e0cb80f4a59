"""A penalty on moving away from the base."""

import math
from dataclasses import dataclass

from freezetrain.recipe.check import check


@dataclass
class Penalty:
    """Pull the weights back to the base's: strength / 2 x sum of F (weight - base's)^2 is added to
    the loss (nats per token), so its gradient passes through clipping and AdamW.

    Without fisher F is 1 for every trainable weight: L2-SP, Li et al. 2018, arXiv 1802.01483. With
    it F is the weight's Fisher information: EWC, Kirkpatrick et al. 2017, arXiv 1612.00796.
    """

    strength: float
    """0 or more. F is 1 on average, so that it means about the same with and without fisher: where
    each of N weights has moved by d, the loss rises by strength / 2 x N x d^2 nats per token."""
    fisher: str | None = None
    """Folder of scores made by `freezetrain score` with method fisher: F is their sum over the
    languages, divided by its mean over all scored weights. Weights that were not scored (by
    default embeddings, last norm and head) are not pulled. None: F is 1 for all, these too."""

    languages: list[str] | None = None
    """Languages whose fisher scores are summed: those to keep. None: all in the folder."""

    def __post_init__(self) -> None:
        good = math.isfinite(self.strength) and self.strength >= 0
        check(good, "penalty.strength", "a number, 0 or more", self.strength)
        alone = self.fisher is not None or self.languages is None
        check(alone, "penalty.languages", "left out where fisher is not given", self.languages)
