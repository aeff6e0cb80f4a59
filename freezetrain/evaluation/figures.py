"""What one evaluation of one language gives: three sums, and the figures that follow from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from freezetrain.errors import CheckError, UserError


@dataclass(frozen=True)
class Figures:
    """Sums over a whole set of documents; every figure is a ratio of sums, never a mean of means.

    ``nll`` in nats over ``tokens`` predicted tokens; ``bytes`` is the UTF-8 length of the text.
    Raises ``UserError`` without a token or a byte, ``CheckError`` if ``nll`` is not finite.
    """

    nll: float
    tokens: int
    bytes: int

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.bytes < 1:
            raise UserError(
                "figures need at least one predicted token and one byte of text, got "
                f"{self.tokens} tokens and {self.bytes} bytes; give documents that are not empty"
            )
        if not math.isfinite(self.nll):
            raise CheckError(
                f"the summed NLL of {self.tokens} tokens is {self.nll}, not a finite number; "
                "look for NaN or overflow in the model's weights"
            )

    @property
    def perplexity(self) -> float:
        """exp(nll / tokens); compares models of one tokenizer. ``inf`` past the float range."""
        return safe_exp(self.nll / self.tokens)

    @property
    def nll_per_byte(self) -> float:
        """Nats per UTF-8 byte; compares languages and tokenizers."""
        return self.nll / self.bytes

    @property
    def bits_per_byte(self) -> float:
        """``nll_per_byte`` in bits."""
        return self.nll_per_byte / math.log(2)

    def to_dict(self) -> dict[str, Any]:
        """The sums and the figures, ready for JSON (an infinite perplexity becomes None)."""
        return {
            "nll": self.nll,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "perplexity": finite_or_none(self.perplexity),
            "bits_per_byte": self.bits_per_byte,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Figures":
        """The inverse of ``to_dict``: reads the sums, the figures follow."""
        return cls(nll=data["nll"], tokens=data["tokens"], bytes=data["bytes"])


def safe_exp(value: float) -> float:
    """exp(value), ``inf`` where a float would overflow."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def finite_or_none(value: float | None) -> float | None:
    """``value``, or None if it is infinite: JSON has no infinity."""
    return value if value is not None and math.isfinite(value) else None
