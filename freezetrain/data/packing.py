"""Token ids on disk → sequences of fixed length, without padding and with nothing lost."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from freezetrain.errors import UserError
from freezetrain.nll import NO_LABEL


class TokenStore:
    """The training documents of one language, end to end, as one stream of token ids on disk.

    ``facts`` counts documents, tokens (BOS and EOS included), bytes of UTF-8, words (between white
    space), held_out documents and skipped lines. ``digest`` [hex] tells its content: texts, split
    and tokenizer. Raises UserError where files of it are missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        try:
            kept = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
            self.digest: str = kept["digest"]
            self.facts: dict[str, int] = kept["facts"]
            self._starts = np.load(folder / "starts.npy", mmap_mode="r", allow_pickle=False)
            self._pieces = [
                np.load(
                    piece_folder(folder, number) / "tokens.npy", mmap_mode="r", allow_pickle=False
                )
                for number in range(kept["pieces"])
            ]
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise UserError(
                f"the tokens in {folder} are damaged ({error}); delete the folder, they are then "
                "made anew"
            ) from error
        self._ends = np.cumsum([len(piece) for piece in self._pieces], dtype=np.int64)
        if self._ends[-1] != len(self) or len(self._starts) != self.facts["documents"]:
            raise UserError(
                f"the tokens in {folder} are {self._ends[-1]} and not the {len(self)} that were "
                "written; delete the folder, they are then made anew"
            )

    def __len__(self) -> int:
        return self.facts["tokens"]

    def read(self, first: int, last: int) -> np.ndarray:
        """Token ids ``first`` to ``last``, the last excluded, int64."""
        tokens = np.empty(last - first, dtype=np.int64)
        number = int(np.searchsorted(self._ends, first, side="right"))
        at = first
        while at < last:
            end = int(self._ends[number])
            offset = end - len(self._pieces[number])
            until = min(last, end)
            tokens[at - first : until - first] = self._pieces[number][at - offset : until - offset]
            at, number = until, number + 1
        return tokens

    def starts(self, first: int, last: int) -> np.ndarray:
        """Places in ``first`` to ``last``, the last excluded, at which a document starts, int64."""
        low, high = np.searchsorted(self._starts, [first, last])
        return np.asarray(self._starts[low:high])

    def starts_before(self, places: np.ndarray) -> np.ndarray:
        """How many documents start before each of ``places``."""
        return np.searchsorted(self._starts, places)


def piece_folder(folder: Path, number: int) -> Path:
    """Where the tokens and document starts of one piece of a store's texts are."""
    return folder / f"{number:05d}"


class Packed:
    """Sequences of ``sequence_length`` L tokens, cut one after another from a language's stream.

    Sequence ``i`` is the tokens ``i·L`` to ``(i+1)·L``, and the label of each is the token after
    it: every token is an input once, and a label once but for the first. The last sequence is
    filled up with tokens from the stream's beginning, which have no labels. Borders between
    documents are crossed (the token after an EOS is the next document's first), unless
    ``document_mask`` says that each document is alone: then no label crosses one, and positions
    start from 0 at each.

    Raises UserError where the stream does not fill one sequence; ``what`` names it.
    """

    def __init__(
        self,
        store: TokenStore,
        sequence_length: int,
        document_mask: bool = False,
        what: str = "a language",
    ) -> None:
        require_sequence(len(store), sequence_length, what)
        self.store = store
        self.sequence_length = sequence_length
        self.document_mask = document_mask

    def __len__(self) -> int:
        return -(-len(self.store) // self.sequence_length)

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


def require_sequence(tokens: int, sequence_length: int, what: str) -> None:
    """UserError where there are fewer tokens than one sequence has; ``what`` has them."""
    if tokens < sequence_length:
        raise UserError(
            f"{what} has {tokens} tokens, fewer than one sequence of {sequence_length}; give "
            "it more text or lower sequence_length"
        )


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
