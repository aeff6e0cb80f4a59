"""Sequences of fixed length, cut from token ids on disk, and batches of them in a given order."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freezetrain.data.order import Order
from freezetrain.data.rehearsed import Rehearsed
from freezetrain.data.streamed import Ahead, Streamed
from freezetrain.data.tokens import TokenStore
from freezetrain.errors import UserError
from freezetrain.nll import NO_LABEL
from freezetrain.recipe.optimization import Optimization


class Packed:
    """Sequences of ``sequence_length`` L tokens, cut one after another from a language's stream.

    Sequence ``i`` is the tokens ``i·L`` to ``(i+1)·L``, and the label of each is the token after
    it: every token is an input once, and a label once but for the first. The last sequence is
    filled up with tokens from the stream's beginning, which have no labels. Borders between
    documents are crossed (the token after an EOS is the next document's first), unless
    ``document_mask`` says that each document is alone: then no label crosses one, and positions
    start from 0 at each.

    Raises UserError where the stream does not fill one sequence.
    """

    def __init__(
        self, store: TokenStore, sequence_length: int, document_mask: bool = False
    ) -> None:
        _require_sequence(store, sequence_length)
        self.store = store
        self.sequence_length = sequence_length
        self.document_mask = document_mask

    def __len__(self) -> int:
        return -(-len(self.store) // self.sequence_length)

    @property
    def content(self) -> list[Any]:
        """What decides the sequences, JSON-able."""
        return [self.store.digest, self.sequence_length]

    def labels(self, sequences: np.ndarray) -> np.ndarray:
        """How many labels count in each of ``sequences``; no token is read."""
        first = np.asarray(sequences, dtype=np.int64) * self.sequence_length
        last = np.minimum(first + self.sequence_length, len(self.store) - 1)
        count = last - first  # labels are the tokens first + 1 to last, last included
        if self.document_mask:
            count -= self.store.starts_before(last + 1) - self.store.starts_before(first + 1)
        return count

    def sequence(self, number: int) -> dict[str, np.ndarray]:
        """Sequence ``number``: input_ids, labels, position_ids with document_mask; [L] int64."""
        length = self.sequence_length
        first = number * length
        last = min(first + length + 1, len(self.store))  # one more, which is a label only
        stream = self.store.read(first, last)
        ids = stream[:length]
        if fill := length - len(ids):
            ids = np.concatenate([ids, self.store.read(0, fill)])
        labels = np.full(length, NO_LABEL, dtype=np.int64)
        labels[: len(stream) - 1] = stream[1:]
        if not self.document_mask:
            return {"input_ids": ids, "labels": labels}
        starts = self.store.starts(first + 1, last) - first
        labels[starts - 1] = NO_LABEL
        if fill:
            starts = np.concatenate([starts, self.store.starts(0, fill) + length - fill])
        begin = np.zeros(length, dtype=np.int64)
        inside = starts[starts < length]
        begin[inside] = inside
        positions = np.arange(length) - np.maximum.accumulate(begin)
        return {"input_ids": ids, "labels": labels, "position_ids": positions}


def _require_sequence(store: TokenStore, sequence_length: int) -> None:
    if len(store) < sequence_length:
        raise UserError(
            f"the training part of language {store.language!r} has {len(store)} tokens, fewer than "
            f"one sequence of {sequence_length}; give it more text or lower sequence_length"
        )


class Drawn:
    """Up to ``sequences`` whole sequences of ``sequence_length`` tokens, in random order.

    They are cut from a language's stream one after another, what does not fill one is left out,
    and the order is a function of their number and ``seed`` alone; the ``first`` so many of it are
    left out. Raises UserError where the stream does not fill a sequence, or ``first`` leaves none.
    """

    def __init__(
        self,
        store: TokenStore,
        sequence_length: int,
        sequences: int,
        *,
        first: int = 0,
        seed: int = 0,
    ) -> None:
        _require_sequence(store, sequence_length)
        self.store = store
        self.sequence_length = sequence_length
        count = len(store) // sequence_length
        if first >= count:
            raise UserError(
                f"the training part of language {store.language!r} has {count} sequences of "
                f"{sequence_length} tokens and first leaves out {first} of them; lower it, or give "
                "it more text"
            )
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        self.numbers = order[first : first + sequences]

    def __len__(self) -> int:
        return len(self.numbers)

    def batches(self, size: int, marks: Sequence[int] = ()) -> Iterator[Tensor]:
        """Token ids, int64 [``size``, L], fewer at the end and before each of ``marks``.

        After some batch exactly ``marks[i]`` sequences have been given, ascending.
        """
        for part in torch.tensor_split(self.numbers, torch.tensor(marks, dtype=torch.int64)):
            for numbers in part.split(size):
                if len(numbers):
                    starts = (numbers * self.sequence_length).tolist()
                    rows = [self.store.read(at, at + self.sequence_length) for at in starts]
                    yield torch.from_numpy(np.stack(rows))


class SequenceLoader:
    """Batches of one of ``world`` ranks, for ``order.length`` sequences in all.

    A batch holds ``input_ids`` and ``labels`` [B, L] int64 (the label of a place is the token
    after it, -100 where none counts), ``position_ids`` [B, L] where documents are masked, and
    ``step_labels``, int64: how many labels count in its whole optimizer step, over all ranks and
    micro-batches. What is rehearsed by KL, the one of :class:`Rehearsed`, counts as labels do, and
    adds ``step_compared``, how many of them are that, and, of the P places of the batch,
    ``kl_places`` [P] (number of a place among the B · L) and what is stored of them; P may be 0.
    Optimizer step ``s`` takes the places ``s·S`` to ``(s+1)·S`` of the order, and
    in it micro-batch ``m`` of rank ``r`` those from ``(m·world + r)·B`` on: what a step is trained
    on depends neither on the number of ranks nor on the size of their micro-batches.

    Lightning saves and restores the position through ``state_dict``; it is counted in sequences
    over all ranks. Iteration starts at the restored position, ``len`` stays the whole. Of streams
    it says from where their texts are read again.
    """

    def __init__(
        self,
        packed: Mapping[str, Packed | Streamed | Rehearsed],
        order: Order,
        settings: Optimization,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        streamed = {name: part for name, part in packed.items() if isinstance(part, Streamed)}
        self._ahead = Ahead(streamed, order, settings.step_sequences)
        self._streams = bool(streamed)
        self._packed = [packed[language] for language in order.languages]
        rehearsed = [source for source in self._packed if isinstance(source, Rehearsed)]
        self._nothing = rehearsed[0].nothing() if rehearsed else {}
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
        current = -1  # step of which places and labels are known
        while self._next < len(self):
            step, micro = divmod(self._next, self._accumulate)
            if step != current:
                current = step
                self._ahead.hold(step)
                languages, sequences = self._order.places(
                    step * self._step, (step + 1) * self._step
                )
                counts = self._counts(languages, sequences)
            first = (micro * self._world + self._rank) * self._micro_batch
            mine = slice(first, first + self._micro_batch)
            batch = self._batch(languages[mine], sequences[mine])
            self._next += 1
            yield {**batch, **{name: torch.tensor(count) for name, count in counts.items()}}

    def _counts(self, languages: np.ndarray, sequences: np.ndarray) -> dict[str, int]:
        counts = {"step_labels": 0}
        if self._nothing:
            counts["step_compared"] = 0
        for number in np.unique(languages).tolist():
            source, here = self._packed[number], sequences[languages == number]
            counts["step_labels"] += int(source.labels(here).sum())
            if self._nothing and isinstance(source, Rehearsed):
                counts["step_compared"] += int(source.compared(here).sum())
        return counts

    def _batch(self, languages: np.ndarray, sequences: np.ndarray) -> dict[str, Tensor]:
        rows = [
            self._packed[language].sequence(sequence)
            for language, sequence in zip(languages.tolist(), sequences.tolist(), strict=True)
        ]
        each = [name for name in ("input_ids", "labels", "position_ids") if name in rows[0]]
        batch = {name: np.stack([row[name] for row in rows]) for name in each}
        for name, none in self._nothing.items():
            parts = [
                row[name] + (number * batch["labels"].shape[1] if name == "kl_places" else 0)
                for number, row in enumerate(rows)
                if name in row
            ]
            batch[name] = np.concatenate([none, *parts])
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what decides each sequence and its place."""
        stores = [packed.content for packed in self._packed]
        content = [self._order.digest, stores, self._packed[0].document_mask]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def state_dict(self) -> dict[str, Any]:
        consumed = self._next * self._micro_batch * self._world
        state = {"sequences": consumed, "digest": self.digest}
        return state | ({"streams": self._ahead.state_dict()} if self._streams else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["digest"] != self.digest:
            raise UserError(
                "the training texts, their split, the tokenizer or the rehearsal changed since the "
                "checkpoint was written; restore them, or start a new run in another folder"
            )
        at_once = self._micro_batch * self._world
        if state["sequences"] % at_once:
            raise UserError(
                f"the checkpoint was written after {state['sequences']} sequences, inside an "
                f"optimizer step, and {at_once} are now taken at once; resume it on as many "
                "devices as before"
            )
        self._next = state["sequences"] // at_once
        if self._streams:
            self._ahead.load_state_dict(state["streams"])
