"""What an evaluation of a language gives: sums per document, and figures made of them."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from freezetrain.errors import CheckError, UserError
from freezetrain.evaluation.hits import Hits
from freezetrain.evaluation.ratio import standard_error


@dataclass(frozen=True)
class StandardErrors:
    """How far figures would scatter, had other documents of the same kind been drawn."""

    nll_per_byte: float  # nats
    nll_per_token: float  # nats
    accuracy: float


@dataclass(frozen=True)
class Figures:
    """Sums over a whole set of documents; every figure is a ratio of sums, never a mean of means.

    ``nll`` in nats over ``tokens`` predicted tokens, ``correct`` of which the model ranks first;
    ``bytes`` is the UTF-8 length of the text. ``standard_errors`` are over ``documents``; None
    where there are fewer than two of them, or it is not known what each one gave.
    Raises ``UserError`` without a token or a byte, ``CheckError`` if ``nll`` is not finite.
    """

    nll: float
    tokens: int
    bytes: int
    correct: int | None = None
    documents: int | None = None
    standard_errors: StandardErrors | None = None

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

    @property
    def byte_perplexity(self) -> float:
        """exp(nll / bytes), as lm-evaluation-harness reports it; ``inf`` past the float range."""
        return safe_exp(self.nll_per_byte)

    @property
    def accuracy(self) -> float | None:
        """Share of the tokens that the model ranks first; None where they were not counted."""
        return None if self.correct is None else self.correct / self.tokens

    def to_dict(self) -> dict[str, Any]:
        """The sums and the figures, ready for JSON (an infinite perplexity becomes None).

        A perplexity's standard error is its own times that of the NLL per token, to first order.
        """
        errors: dict[str, float | None] | None = None
        if self.standard_errors is not None:
            of_token = self.standard_errors.nll_per_token
            errors = {
                **asdict(self.standard_errors),
                "bits_per_byte": self.standard_errors.nll_per_byte / math.log(2),
                "perplexity": finite_or_none(self.perplexity * of_token),
            }
        return {
            "nll": self.nll,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "correct": self.correct,
            "documents": self.documents,
            "perplexity": finite_or_none(self.perplexity),
            "nll_per_byte": self.nll_per_byte,
            "bits_per_byte": self.bits_per_byte,
            "accuracy": self.accuracy,
            "standard_errors": errors,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Figures":
        """The inverse of ``to_dict``: reads sums and standard errors, the figures follow."""
        errors = data.get("standard_errors")
        kept = None
        if errors is not None:
            names = ("nll_per_byte", "nll_per_token", "accuracy")
            kept = StandardErrors(**{name: errors[name] for name in names})
        return cls(
            nll=data["nll"],
            tokens=data["tokens"],
            bytes=data["bytes"],
            correct=data.get("correct"),
            documents=data.get("documents"),
            standard_errors=kept,
        )


def safe_exp(value: float) -> float:
    """exp(value), ``inf`` where a float would overflow."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def finite_or_none(value: float | None) -> float | None:
    """``value``, or None if it is infinite: JSON has no infinity."""
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True, eq=False)
class DocumentSums:
    """Sums over the tokens of each document of one language, in the order of its documents.

    Raises ``UserError`` for arrays of different lengths, or none.
    """

    nll: NDArray[np.float64]  # [N] nats
    tokens: NDArray[np.int64]  # [N] predicted ones
    bytes: NDArray[np.int64]  # [N] UTF-8 length of the text
    correct: NDArray[np.int64]  # [N] tokens that the model ranks first
    hits: Hits | None = None  # which ones they are; None where that is not known

    def __post_init__(self) -> None:
        for name, dtype in (("nll", np.float64), *((n, np.int64) for n in _COUNTS)):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype))
        shapes = {name: getattr(self, name).shape for name in ("nll", *_COUNTS)}
        if len(set(shapes.values())) > 1 or self.nll.ndim != 1 or not len(self.nll):
            raise UserError(f"expected a number for each document in every array, got {shapes}")
        if self.hits is not None and not np.array_equal(self.hits.tokens, self.tokens):
            raise UserError("expected hits of the same documents as the sums, got those of others")

    def __len__(self) -> int:
        return len(self.nll)

    def take(self, numbers: ArrayLike) -> "DocumentSums":
        """Those of some documents, by their numbers [M]."""
        numbers = np.asarray(numbers, np.int64)
        sums = DocumentSums(*(getattr(self, name)[numbers] for name in ("nll", *_COUNTS)))
        return sums if self.hits is None else replace(sums, hits=self.hits.take(numbers))

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

    def to_dict(self) -> dict[str, Any]:
        """Lists, ready for JSON; ``hits`` as it writes itself."""
        data = {name: getattr(self, name).tolist() for name in ("nll", *_COUNTS)}
        return data if self.hits is None else {**data, "hits": self.hits.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "DocumentSums":
        """The inverse of ``to_dict``."""
        sums = cls(*(data[name] for name in ("nll", *_COUNTS)))
        if (hits := data.get("hits")) is None:
            return sums
        return replace(sums, hits=Hits.from_dict(hits, sums.tokens))


_COUNTS = ("tokens", "bytes", "correct")


def as_figures(result: "Figures | DocumentSums") -> Figures:
    """Figures, whichever of the two it is."""
    return result.figures() if isinstance(result, DocumentSums) else result
