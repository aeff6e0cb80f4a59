"""What a model gave on each document of a language: what figures and comparisons are made of."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from freezetrain.errors import UserError
from freezetrain.evaluation.figures import Figures, StandardErrors
from freezetrain.evaluation.ratio import standard_error


@dataclass(frozen=True, eq=False)
class DocumentSums:
    """Sums over the tokens of each document of one language, in the order of its documents.

    Raises ``UserError`` for arrays of different lengths, or none.
    """

    nll: NDArray[np.float64]  # [N] nats
    tokens: NDArray[np.int64]  # [N] predicted ones
    bytes: NDArray[np.int64]  # [N] UTF-8 length of the text
    correct: NDArray[np.int64]  # [N] tokens that the model ranks first

    def __post_init__(self) -> None:
        for name, dtype in (("nll", np.float64), *((n, np.int64) for n in _COUNTS)):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype))
        shapes = {name: getattr(self, name).shape for name in ("nll", *_COUNTS)}
        if len(set(shapes.values())) > 1 or self.nll.ndim != 1 or not len(self.nll):
            raise UserError(f"expected a number for each document in every array, got {shapes}")

    def __len__(self) -> int:
        return len(self.nll)

    def take(self, numbers: ArrayLike) -> "DocumentSums":
        """Those of some documents, by their numbers [M]."""
        numbers = np.asarray(numbers, np.int64)
        return DocumentSums(*(getattr(self, field.name)[numbers] for field in fields(self)))

    def figures(self) -> Figures:
        """The sums over all documents. ``CheckError`` if the NLL is not finite."""
        nll = math.fsum(self.nll)  # the same for any order of the documents
        errors = None
        if len(self) > 1 and math.isfinite(nll):
            errors = StandardErrors(
                nll_per_byte=standard_error(self.nll, self.bytes) or 0.0,
                nll_per_token=standard_error(self.nll, self.tokens) or 0.0,
                accuracy=standard_error(self.correct, self.tokens) or 0.0,
            )
        return Figures(
            nll,
            int(self.tokens.sum()),
            int(self.bytes.sum()),
            int(self.correct.sum()),
            len(self),
            errors,
        )

    def to_dict(self) -> dict[str, Sequence[float]]:
        """Lists, ready for JSON."""
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "DocumentSums":
        """The inverse of ``to_dict``."""
        return cls(**{field.name: data[field.name] for field in fields(cls)})


_COUNTS = ("tokens", "bytes", "correct")


def as_figures(found: "Figures | DocumentSums") -> Figures:
    """Figures, whichever of the two it is."""
    return found.figures() if isinstance(found, DocumentSums) else found
