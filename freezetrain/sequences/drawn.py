"""Some of a language's sequences, drawn by seed: what is scored."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from freezetrain.errors import UserError
from freezetrain.sequences.packing import require_sequence
from freezetrain.sequences.token_store import TokenStore


class Drawn:
    """Up to ``sequences`` whole sequences of ``sequence_length`` tokens, in random order.

    They are cut from a language's stream one after another, what does not fill one is left out,
    and the order is a function of their number and ``seed`` alone; the ``first`` so many of it are
    left out. ``what`` names the language.

    Raises:
        UserError: the stream does not fill a sequence, or ``first`` leaves none.
    """

    def __init__(
        self,
        store: TokenStore,
        sequence_length: int,
        sequences: int,
        *,
        first: int = 0,
        seed: int = 0,
        what: str = "a language",
    ) -> None:
        require_sequence(len(store), sequence_length, what)
        self.store = store
        self.sequence_length = sequence_length
        there = len(store) // sequence_length
        if first >= there:
            raise UserError(
                f"{what} has {there} sequences of {sequence_length} tokens and first leaves out "
                f"{first} of them; lower it, or give it more text"
            )
        order = torch.randperm(there, generator=torch.Generator().manual_seed(seed))
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
                    yield torch.from_numpy(np.stack([self._read(n) for n in numbers.tolist()]))

    def _read(self, number: int) -> np.ndarray:
        first = number * self.sequence_length
        return self.store.read(first, first + self.sequence_length)
