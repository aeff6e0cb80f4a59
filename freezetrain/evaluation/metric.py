"""Sums of NLL, tokens and bytes of many languages, reduced over processes as sums."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from freezetrain.errors import CheckError
from freezetrain.evaluation.figures import Figures


class LanguageNLL(Metric):
    """One fp64 and two int64 sums for each of K languages; state sizes do not grow with data.

    Sums, not means, are what processes exchange: perplexity is exp(Σ NLL / Σ tokens) over all of
    them, never a mean of per-batch or per-process perplexities.
    """

    full_state_update = False
    nll: Tensor  # [K] nats
    tokens: Tensor  # [K]
    bytes: Tensor  # [K]

    def __init__(self, languages: Sequence[str]) -> None:
        super().__init__()
        self.languages = list(languages)
        for name, dtype in (
            ("nll", torch.float64),
            ("tokens", torch.int64),
            ("bytes", torch.int64),
        ):
            zeros = torch.zeros(len(self.languages), dtype=dtype)
            self.add_state(name, default=zeros, dist_reduce_fx="sum")

    def update(self, language: Tensor, nll: Tensor, tokens: Tensor, bytes: Tensor) -> None:
        """Add N sequences: index into ``languages``, summed NLL in nats, counts; all [N]."""
        index = language.to(self.nll.device)
        self.nll.index_add_(0, index, nll.to(self.nll))
        self.tokens.index_add_(0, index, tokens.to(self.tokens))
        self.bytes.index_add_(0, index, bytes.to(self.bytes))

    def compute(self) -> dict[str, Tensor]:
        """The sums over all processes: ``nll``, ``tokens`` and ``bytes``, each [K]."""
        return {"nll": self.nll, "tokens": self.tokens, "bytes": self.bytes}

    def figures(self) -> dict[str, Figures]:
        """The figures of each language over all processes; each of them must call this.

        Raises ``CheckError`` naming the language whose NLL is not finite.
        """
        # reshape, because torchmetrics makes a scalar of the sums of a single language.
        sums = {name: values.reshape(-1).tolist() for name, values in self.compute().items()}
        result = {}
        for row, language in enumerate(self.languages):
            nll, tokens, bytes = (sums[name][row] for name in ("nll", "tokens", "bytes"))
            if not math.isfinite(nll):
                raise CheckError(
                    f"the summed NLL of language {language!r} is {nll}, not a finite number; look "
                    "for NaN or overflow in the model's weights"
                )
            result[language] = Figures(nll, tokens, bytes)
        return result
