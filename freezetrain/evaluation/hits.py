"""Which tokens of documents a model ranks first, a bit each, and which of them another one lost."""

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from freezetrain.errors import UserError
from freezetrain.evaluation.documents import Document, fingerprint


@dataclass(frozen=True)
class Flips:
    """How many tokens of a language go from right to wrong, and from wrong to right.

    Right: the token is the argmax of the model's logits, the first of equals.
    """

    lost: int
    """Right with the base, wrong with the adapted model."""
    won: int
    """Wrong with the base, right with the adapted model."""


@dataclass(frozen=True, eq=False)
class Hits:
    """Which predicted tokens of a language's documents are ranked first.

    Raises ``UserError`` where the parts are not of the same documents.
    """

    bits: NDArray[np.uint8]
    """[⌈Σ tokens / 8⌉]: a bit for each predicted token, document after document (np.packbits)."""
    tokens: NDArray[np.int64]
    """[N] predicted tokens of each document."""
    documents: list[str]
    """[N] fingerprint of each document's ids."""

    def __post_init__(self) -> None:
        total = int(self.tokens.sum())
        if len(self.documents) != len(self.tokens) or len(self.bits) != -(-total // 8):
            raise UserError(
                f"expected a fingerprint for each of {len(self.tokens)} documents and a bit for "
                f"each of {total} tokens, got {len(self.documents)} and {8 * len(self.bits)}"
            )

    @classmethod
    def of(cls, documents: Sequence[Document], ranked_first: NDArray[np.bool_]) -> "Hits":
        """``ranked_first`` [Σ tokens]: of each predicted token, document after document."""
        tokens = np.array([document.tokens for document in documents], np.int64)
        return cls(np.packbits(ranked_first), tokens, [fingerprint(one) for one in documents])

    def take(self, numbers: ArrayLike) -> "Hits":
        """Those of some documents, by their numbers [M]."""
        chosen = np.asarray(numbers, np.int64)
        parts = np.split(self._ranked_first(), np.cumsum(self.tokens)[:-1])
        bits = np.packbits(np.concatenate([parts[number] for number in chosen]))
        return Hits(bits, self.tokens[chosen], [self.documents[number] for number in chosen])

    def flips(self, adapted: "Hits") -> Flips | None:
        """What ``adapted`` lost and won; None where the two are not of the same tokens."""
        if self.documents != adapted.documents:
            return None
        before, after = self._ranked_first(), adapted._ranked_first()
        return Flips(int((before & ~after).sum()), int((after & ~before).sum()))

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, but for ``tokens``: bits in base64."""
        return {"bits": b64encode(self.bits.tobytes()).decode(), "documents": self.documents}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], tokens: NDArray[np.int64]) -> "Hits":
        """The inverse of ``to_dict``. ValueError for bits that are no base64."""
        bits = np.frombuffer(b64decode(data["bits"], validate=True), np.uint8)
        return cls(bits, tokens, data["documents"])

    def _ranked_first(self) -> NDArray[np.bool_]:
        return np.unpackbits(self.bits, count=int(self.tokens.sum())).astype(np.bool_)
