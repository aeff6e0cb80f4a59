"""Micro-batches of packed sequences in a given order, with a position that resumes exactly."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freezetrain.data.order import Order
from freezetrain.data.packing import Packed
from freezetrain.errors import UserError
from freezetrain.recipe.optimization import Optimization


class SequenceLoader:
    """Batches of one of ``world`` ranks, for ``order.length`` sequences in all.

    A batch holds ``input_ids`` and ``labels`` [B, L] int64 (the label of a place is the token
    after it, -100 where none counts), ``position_ids`` [B, L] where documents are masked, and
    ``step_labels``, int64: how many labels count in its whole optimizer step, over all ranks and
    micro-batches. Optimizer step ``s`` takes the places ``s·S`` to ``(s+1)·S`` of the order, and
    in it micro-batch ``m`` of rank ``r`` those from ``(m·world + r)·B`` on: what a step is trained
    on depends neither on the number of ranks nor on the size of their micro-batches.

    Lightning saves and restores the position through ``state_dict``; it is counted in sequences
    over all ranks. Iteration starts at the restored position, ``len`` stays the whole.
    """

    def __init__(
        self,
        packed: Mapping[str, Packed],
        order: Order,
        settings: Optimization,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._packed = [packed[language] for language in order.languages]
        self._order = order
        self._step = settings.step_sequences
        self._accumulate = settings.accumulate(world)
        self._micro_batch = settings.micro_batch
        self._rank = rank
        self._world = world
        self._next = 0

    def __len__(self) -> int:
        return self._order.length // (self._micro_batch * self._world)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        laid_out = -1
        while self._next < len(self):
            step, micro = divmod(self._next, self._accumulate)
            if step != laid_out:
                places = self._order.places(step * self._step, (step + 1) * self._step)
                labels = self._labels(*places)
                laid_out = step
            first = (micro * self._world + self._rank) * self._micro_batch
            mine = slice(first, first + self._micro_batch)
            batch = self._batch(places[0][mine], places[1][mine])
            self._next += 1
            yield {**batch, "step_labels": torch.tensor(labels)}

    def _labels(self, languages: np.ndarray, sequences: np.ndarray) -> int:
        return sum(
            int(self._packed[number].labels(sequences[languages == number]).sum())
            for number in np.unique(languages).tolist()
        )

    def _batch(self, languages: np.ndarray, sequences: np.ndarray) -> dict[str, Tensor]:
        rows = [
            self._packed[language].sequence(sequence)
            for language, sequence in zip(languages.tolist(), sequences.tolist(), strict=True)
        ]
        return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what decides each sequence and its place."""
        told = [
            self._order.digest,
            [[packed.store.digest, packed.sequence_length] for packed in self._packed],
            self._packed[0].document_mask,
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def state_dict(self) -> dict[str, Any]:
        consumed = self._next * self._micro_batch * self._world
        return {"sequences": consumed, "digest": self.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["digest"] != self.digest:
            raise UserError(
                "the training texts, their split or the tokenizer changed since the checkpoint "
                "was written; restore them, or start a new run in another folder"
            )
        together = self._micro_batch * self._world
        if state["sequences"] % together:
            raise UserError(
                f"the checkpoint was written after {state['sequences']} sequences, inside an "
                f"optimizer step, and {together} are now taken at once; resume it on as many "
                "devices as before"
            )
        self._next = state["sequences"] // together
