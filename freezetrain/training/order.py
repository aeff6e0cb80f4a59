"""The order of the sequences, a function of seed and position alone: a run resumes exactly."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freezetrain.errors import UserError, near_misses


def _epochs(count: int, needed: int, generator: np.random.Generator) -> np.ndarray:
    """``needed`` indices below ``count``: one shuffled epoch after another."""
    epochs = [generator.permutation(count) for _ in range(-(-needed // count))]
    return np.concatenate(epochs)[:needed] if epochs else np.empty(0, dtype=np.int64)


def data_order(
    sizes: Mapping[str, int], weights: Mapping[str, float], length: int, seed: int
) -> np.ndarray:
    """Indices [length] into the languages' sequences laid end to end in the order of ``sizes``.

    Without ``weights`` all sequences form one pool, shuffled anew each epoch. With them, each
    place draws its language with a probability proportional to its weight, and each language
    goes through its own shuffled epochs. Raises UserError for unknown or bad weights.
    """
    if not weights:
        total = sum(sizes.values())
        return _epochs(total, length, np.random.default_rng([seed, 0]))
    for language, weight in weights.items():
        if language not in sizes:
            raise UserError(
                f"weights name language {language!r}, which is not trained on"
                f"{near_misses(language, sizes)}; it trains on {' '.join(sizes)}"
            )
        if not (weight > 0 and math.isfinite(weight)):
            raise UserError(f"the weight of {language!r} must be a number above 0, got {weight}")
    if missing := [language for language in sizes if language not in weights]:
        raise UserError(f"weights must name every language trained on; {missing[0]!r} is missing")
    shares = np.array([weights[language] for language in sizes], dtype=np.float64)
    drawn = np.random.default_rng([seed, 0]).choice(
        len(shares), size=length, p=shares / shares.sum()
    )
    order = np.empty(length, dtype=np.int64)
    start = 0
    for position, size in enumerate(sizes.values()):
        places = np.flatnonzero(drawn == position)
        generator = np.random.default_rng([seed, 1 + position])
        order[places] = start + _epochs(size, len(places), generator)
        start += size
    return order


class SequenceLoader:
    """Micro-batches [B, L] int64 of packed sequences in a given order, with a resumable position.

    Batch ``i`` of rank ``r`` holds places ``(i·world + r)·B`` to ``(i·world + r + 1)·B`` of the
    order. Lightning saves and restores the position through ``state_dict``; it is counted in
    sequences over all ranks. Iteration starts at the restored position, ``len`` stays the whole.
    """

    def __init__(
        self, sequences: Tensor, order: np.ndarray, micro_batch: int, rank: int = 0, world: int = 1
    ) -> None:
        self._sequences = sequences
        self._order = torch.from_numpy(order)
        self._micro_batch = micro_batch
        self._rank = rank
        self._world = world
        self._next = 0

    def __len__(self) -> int:
        return len(self._order) // (self._micro_batch * self._world)

    def __iter__(self) -> Iterator[Tensor]:
        while self._next < len(self):
            first = (self._next * self._world + self._rank) * self._micro_batch
            places = self._order[first : first + self._micro_batch]
            self._next += 1
            yield self._sequences[places].long()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the sequences and their order."""
        digest = hashlib.sha256(self._order.numpy().data)
        digest.update(self._sequences.contiguous().numpy().data)
        return digest.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        consumed = self._next * self._micro_batch * self._world
        return {"sequences": consumed, "digest": self.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["digest"] != self.digest:
            raise UserError(
                "the training texts, their split or the tokenizer changed since the checkpoint "
                "was written; restore them, or start a new run in another folder"
            )
        self._next = state["sequences"] // (self._micro_batch * self._world)
