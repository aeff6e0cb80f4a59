"""A stream of tokens → sequences of fixed length, without padding and with nothing lost."""

import numpy as np

from freezetrain.errors import UserError
from freezetrain.nll import NO_LABEL
from freezetrain.sequences.token_store import TokenStore


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
