"""The KL to the base at the rehearsed places of a batch, and its mean, kept and logged."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from freezetrain.head.find import find_head
from freezetrain.head.inside import hidden_states
from freezetrain.head.loss import LabelLoss, PlaceLoss, Term
from freezetrain.rehearsal import batch_kl, full_kl
from freezetrain.rehearsal.dataset import batch_targets
from freezetrain.rehearsal.kl import BucketKL, FullKL


class Compared:
    """Compares a model with the base at the rehearsed places of batches of SequenceLoader.

    ``teacher``: the base, compared over the whole vocabulary; None: by what the batches hold.
    """

    def __init__(self, teacher: PreTrainedModel | None = None) -> None:
        self.teacher = teacher
        self._sum, self._count = 0.0, 0
        self.history: list[tuple[int, float, int]] = []
        """Each time that it was logged: optimizer steps done, the mean KL in nats per token of the
        places since the time before, and their number."""

    def kl(
        self,
        logits: Tensor,
        batch: Mapping[str, Tensor],
        forward: Callable[[PreTrainedModel], Tensor],
    ) -> Tensor:
        """Sum over the batch's rehearsed places, 0 where there are none; fp32, a scalar.

        ``forward(model)`` gives logits [B, L, V] of the batch, as ``logits`` are the model's.
        """
        places = batch.get("kl_places")
        if places is None or not len(places):
            return torch.zeros((), device=logits.device)
        if self.teacher is None:
            return batch_kl(logits, batch).sum()
        nn.Module.to(self.teacher, logits.device)
        with torch.no_grad():
            base = forward(self.teacher).flatten(0, 1)[places]
        return full_kl(logits.flatten(0, 1)[places], base).sum()

    def terms(
        self,
        labels: Tensor,
        batch: Mapping[str, Tensor],
        vocabulary: int,
        forward: Callable[[PreTrainedModel], object],
    ) -> list[Term]:
        """NLL of ``labels`` [P], and KL of the rehearsed places, as losses of the head's logits.

        ``forward(model)`` runs ``model`` on the batch.
        """
        compared = batch.get("kl_places")
        if compared is None or not len(compared):
            return [Term(LabelLoss(labels))]
        # What is rehearsed has no labels. The others' number is known without waiting for a GPU.
        kept = torch.ones_like(labels).index_fill(0, compared, 0)
        places = kept.argsort(descending=True, stable=True)[: len(labels) - len(compared)]
        kl: PlaceLoss
        if self.teacher is None:
            kl = BucketKL(batch_targets(batch), vocabulary, compared.device)
        else:
            kl = self._full_kl(self.teacher, compared, forward)
        return [Term(LabelLoss(labels[places]), places), Term(kl, compared)]

    def _full_kl(
        self, teacher: PreTrainedModel, places: Tensor, forward: Callable[[PreTrainedModel], object]
    ) -> FullKL:
        nn.Module.to(teacher, places.device)
        head = find_head(teacher)
        assert head is not None  # the model's class is the same
        hidden = hidden_states(head, lambda: forward(teacher)).flatten(0, -2)
        return FullKL(hidden[places], head)

    def add(self, total: float, count: int) -> None:
        """A step's KL and places, over all ranks and micro-batches; one that is bad counts not."""
        if math.isfinite(total):
            self._sum += total
            self._count += count

    def take(self, step: int) -> float | None:
        """The mean since it was taken last, which is kept as that of ``step``; None: no places."""
        if not self._count:
            return None
        mean = self._sum / self._count
        self.history.append((step, mean, self._count))
        self._sum, self._count = 0.0, 0
        return mean

    @property
    def last(self) -> float | None:
        """Mean KL of the last tenth, at least, of the places so far; None: there were none."""
        wanted = (self._count + sum(count for _, _, count in self.history)) / 10
        total, count = self._sum, self._count
        for _, mean, places in reversed(self.history):
            if count and count >= wanted:
                break
            total += mean * places
            count += places
        return total / count if count else None

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        history = [list(entry) for entry in self.history]
        return {"sum": self._sum, "count": self._count, "history": history}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sum, self._count = state["sum"], state["count"]
        self.history = [(step, mean, count) for step, mean, count in state["history"]]
