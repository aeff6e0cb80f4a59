"""Sequences that the base drew, as sequences of a training run."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from freezetrain.nll import NO_LABEL
from freezetrain.rehearsal import Rehearsal

Learned = Literal["kl", "next_token"]

STORED = ("top_tokens", "top_log_probs", "rest_log_prob")
"""What a batch holds of each rehearsed place, as :func:`freezetrain.rehearsal.collate` gives it."""


class Rehearsed:
    """Rows of ``sequence_length`` L tokens, each one sequence of ``rehearsal`` from its start.

    What is longer is cut, and what is shorter is filled up with tokens that count in no loss. With
    ``document_mask`` a row holds as many sequences, in their order, as fit into it whole, and
    positions start from 0 at each.

    ``loss``: next_token gives each place the token after it as its label, within its sequence; with
    kl there are no labels, and each place is one at which the model is compared with the base.
    ``targets``: whether what the base says there is read too.
    """

    def __init__(
        self,
        rehearsal: Rehearsal,
        sequence_length: int,
        document_mask: bool = False,
        loss: Learned = "kl",
        targets: bool = True,
    ) -> None:
        self.rehearsal = rehearsal
        self.sequence_length = sequence_length
        self.document_mask = document_mask
        self.loss = loss
        self.targets = targets and loss == "kl"
        lengths = rehearsal.lengths
        cut = np.minimum(lengths, sequence_length)
        self._starts = np.arange(len(cut))  # first sequence of each row
        if document_mask:
            self._starts = _first_of_rows(cut.tolist(), sequence_length)
        counts = cut if loss == "kl" else np.minimum(lengths - 1, sequence_length)
        self._counts = np.add.reduceat(counts, self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def content(self) -> list[Any]:
        """What decides the rows, JSON-able."""
        return [self.rehearsal.digest, self.sequence_length, self.loss, self.targets]

    def labels(self, sequences: np.ndarray) -> np.ndarray:
        """How many labels, or places compared with the base, each of ``sequences`` has."""
        return self._counts[sequences]

    def compared(self, sequences: np.ndarray) -> np.ndarray:
        """How many places of each of ``sequences`` are compared with the base."""
        return self._counts[sequences] * (self.loss == "kl")

    def sequence(self, number: int) -> dict[str, np.ndarray]:
        """Row ``number`` as :meth:`Packed.sequence` gives one, and, for kl, ``kl_places`` [P]
        within it and STORED of them."""
        length = self.sequence_length
        ids, positions = np.zeros(length, dtype=np.int64), np.arange(length)
        labels = np.full(length, NO_LABEL, dtype=np.int64)
        first, last = np.append(self._starts, len(self.rehearsal))[number : number + 2].tolist()
        stored: list[dict[str, np.ndarray]] = []
        at = 0
        for drawn in (self.rehearsal[sequence] for sequence in range(first, last)):
            tokens = drawn["input_ids"].numpy()
            here = slice(at, at + min(len(tokens), length))
            count = here.stop - at
            ids[here] = tokens[:count]
            positions[at:] = np.arange(length - at)
            if self.loss == "next_token":
                labels[at : at + len(tokens) - 1] = tokens[1 : count + 1]
            elif self.targets:
                stored.append({name: _bits(drawn[name][:count]) for name in STORED})
            at = here.stop
        positions[at:] = np.arange(length - at)  # what fills the row up is seen by itself
        row = {"input_ids": ids, "labels": labels}
        if self.document_mask:
            row["position_ids"] = positions
        if self.loss == "kl":
            row["kl_places"] = np.arange(at)
        if self.targets:
            row |= {name: np.concatenate([part[name] for part in stored]) for name in STORED}
        return row

    def borders(self, number: int) -> tuple[list[int], int]:
        """Places of row ``number`` at which a sequence begins, and how many are filled."""
        first, last = np.append(self._starts, len(self.rehearsal))[number : number + 2].tolist()
        cut = np.minimum(self.rehearsal.lengths[first:last], self.sequence_length)
        ends = np.cumsum(cut).tolist()
        return [0, *ends[:-1]], ends[-1]

    def nothing(self) -> dict[str, np.ndarray]:
        """What a batch without rehearsed places holds of them: 0 of each."""
        if self.loss != "kl":
            return {}
        k = self.rehearsal.made.k
        empty = {"kl_places": np.empty(0, dtype=np.int64)}
        if self.targets:
            empty["top_tokens"] = np.empty((0, k), dtype=np.int32)
            empty["top_log_probs"] = np.empty((0, k), dtype=np.int16)
            empty["rest_log_prob"] = np.empty(0, dtype=np.int16)
        return empty


def _bits(values: torch.Tensor) -> np.ndarray:
    bits: np.ndarray = (values.view(torch.int16) if values.is_floating_point() else values).numpy()
    return bits


def _first_of_rows(lengths: Sequence[int], row: int) -> np.ndarray:
    """The first sequence of each row of ``row`` places, where a row takes the next that fit."""
    starts, filled = [0], 0
    for number, length in enumerate(lengths):
        if filled + length > row:
            starts.append(number)
            filled = 0
        filled += length
    return np.array(starts)
