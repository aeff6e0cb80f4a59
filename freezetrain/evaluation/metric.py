"""NLL of many languages as torchmetrics: what processes exchange are sums, never means."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from freezetrain.errors import CheckError, UserError
from freezetrain.evaluation.documents import Document
from freezetrain.evaluation.figures import DocumentSums, Figures, StandardErrors
from freezetrain.evaluation.ratio import standard_error_of_moments

_SUMS = ("documents", "tokens", "bytes", "correct")  # int64

# What over what, as in StandardErrors: NLL per byte, NLL per token, accuracy.
_RATIOS = (("nll", "bytes"), ("nll", "tokens"), ("correct", "tokens"))


class LanguageNLL(Metric):
    """Sums for each of K languages, in any LightningModule; state sizes do not grow with data.

    In a ``validation_step``: ``metric.update(batch.language, *label_sums(logits, labels),
    bytes=batch.bytes)``, a row a document, and ``metric.figures()`` at the end of the epoch, on
    all processes. See :class:`DocumentNLL` where documents are cut into several rows, or compared
    with another model's.
    """

    full_state_update = False
    nll: Tensor  # [K] nats, fp64
    documents: Tensor  # [K], as the next three
    tokens: Tensor
    bytes: Tensor
    correct: Tensor
    moments: Tensor  # [K, 3, 3] fp64: Σ value², Σ value · size, Σ size² of each ratio

    def __init__(self, languages: Sequence[str]) -> None:
        super().__init__()
        self.languages = list(languages)
        count = len(self.languages)
        states = {name: torch.zeros(count, dtype=torch.int64) for name in _SUMS}
        states["nll"] = torch.zeros(count, dtype=torch.float64)
        states["moments"] = torch.zeros(count, len(_RATIOS), 3, dtype=torch.float64)
        for name, zeros in states.items():
            self.add_state(name, default=zeros, dist_reduce_fx="sum")

    def update(
        self, language: Tensor, nll: Tensor, tokens: Tensor, correct: Tensor, bytes: Tensor
    ) -> None:
        """Add N documents: index into ``languages``, then their sums as of ``label_sums``; all [N].

        Raises ``UserError`` for an index that no language has.
        """
        index = language.to(self.nll.device)
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self.languages):
            raise UserError(
                f"expected languages from 0 to {len(self.languages) - 1}, the places in "
                f"{', '.join(self.languages)}, got {sorted(set(index.tolist()))}"
            )
        sums = {"nll": nll, "tokens": tokens, "bytes": bytes, "correct": correct}
        for name, values in {**sums, "documents": torch.ones_like(index)}.items():
            state = getattr(self, name)
            state.index_add_(0, index, values.to(state))
        fp64 = {name: values.to(self.moments) for name, values in sums.items()}
        for place, (value, size) in enumerate(_RATIOS):
            of, over = fp64[value], fp64[size]
            products = torch.stack([of * of, of * over, over * over], 1)
            self.moments[:, place].index_add_(0, index, products)

    def compute(self) -> dict[str, Tensor]:
        """The sums over all processes, each [K], and the moments [K, 3, 3]."""
        return {name: getattr(self, name) for name in ("nll", *_SUMS, "moments")}

    def figures(self) -> dict[str, Figures]:
        """The figures of each language over all processes; each of them must call this.

        Raises ``UserError`` naming a language without documents, ``CheckError`` naming one whose
        NLL is not finite.
        """
        # reshape, because torchmetrics makes a scalar of the sums of a single language.
        sums = {name: values.reshape(-1).tolist() for name, values in self.compute().items()}
        result = {}
        for row, language in enumerate(self.languages):
            nll = sums["nll"][row]
            _check_finite(language, nll)
            documents, tokens, bytes, correct = (sums[name][row] for name in _SUMS)
            if not documents:
                raise UserError(
                    f"expected documents of each language, got none of {language!r} since the last "
                    "reset; leave it out, or, in Lightning's sanity check of a few batches, give "
                    "the Trainer num_sanity_val_steps=0"
                )
            errors = None
            if documents > 1:
                totals = {"nll": nll, "tokens": tokens, "bytes": bytes, "correct": correct}
                at = row * len(_RATIOS) * 3
                of_ratio = [sums["moments"][at + 3 * n : at + 3 * n + 3] for n in range(3)]
                errors = StandardErrors(
                    *(
                        standard_error_of_moments(documents, totals[value], totals[size], *moments)
                        for (value, size), moments in zip(_RATIOS, of_ratio, strict=True)
                    )
                )
            result[language] = Figures(nll, tokens, bytes, correct, documents, errors)
        return result


class DocumentNLL(Metric):
    """Sums for each document, whichever batches and processes its windows were in.

    What two models gave on the same documents can be compared pairwise, which tells far smaller
    differences from chance than two standard errors do.
    """

    full_state_update = False
    nll: Tensor  # [N] nats, fp64, the documents of one language after those of another
    correct: Tensor  # [N] int64

    def __init__(self, documents: Mapping[str, Sequence[Document]]) -> None:
        super().__init__()
        self.sizes = {language: len(texts) for language, texts in documents.items()}
        every = [document for texts in documents.values() for document in texts]
        self.tokens = torch.tensor([document.tokens for document in every], dtype=torch.int64)
        self.bytes = torch.tensor([document.bytes for document in every], dtype=torch.int64)
        for name, dtype in (("nll", torch.float64), ("correct", torch.int64)):
            zeros = torch.zeros(len(every), dtype=dtype)
            self.add_state(name, default=zeros, dist_reduce_fx="sum")

    def update(self, document: Tensor, nll: Tensor, correct: Tensor) -> None:
        """Add M windows: their document's number among all, summed NLL in nats, hits; all [M]."""
        index = document.to(self.nll.device)
        self.nll.index_add_(0, index, nll.to(self.nll))
        self.correct.index_add_(0, index, correct.to(self.correct))

    def compute(self) -> dict[str, Tensor]:
        """The sums over all processes: ``nll`` and ``correct``, each [N]."""
        return {"nll": self.nll, "correct": self.correct}

    def document_sums(self) -> dict[str, DocumentSums]:
        """The sums of each language's documents over all processes; each of them must call this.

        Raises ``CheckError`` naming the language whose NLL is not finite.
        """
        sums = {name: values.reshape(-1).cpu() for name, values in self.compute().items()}
        result, first = {}, 0
        for language, size in self.sizes.items():
            these = slice(first, first + size)
            nll = sums["nll"][these].numpy()
            _check_finite(language, math.fsum(nll))
            counts = (self.tokens[these], self.bytes[these], sums["correct"][these])
            tokens, written, correct = (values.numpy() for values in counts)
            result[language] = DocumentSums(nll, tokens, written, correct)
            first += size
        return result


def _check_finite(language: str, nll: float) -> None:
    if not math.isfinite(nll):
        raise CheckError(
            f"the summed NLL of language {language!r} is {nll}, not a finite number; look "
            "for NaN or overflow in the model's weights"
        )
