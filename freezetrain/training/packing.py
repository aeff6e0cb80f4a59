"""Texts → token ids → sequences of fixed length, without padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from freezetrain.errors import UserError

_TEXTS_AT_ONCE = 1000


@dataclass(frozen=True)
class Packed:
    """Sequences of one language, with what was read to make them."""

    sequences: Tensor  # [N, sequence_length], int32
    documents: int
    tokens: int  # separators included
    dropped: int  # tokens of the last, unfilled sequence
    bytes: int  # of UTF-8

    def facts(self) -> dict[str, int]:
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "sequences": len(self.sequences),
            "dropped_tokens": self.dropped,
        }


def token_stream(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Concatenate the texts' tokens into one int32 array, documents separated.

    A document is `[BOS] tokens EOS`; BOS only where the tokenizer has one that is not its EOS.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if eos is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token to separate documents with; set its "
            "eos_token and save it again"
        )
    start = [bos] if bos is not None and bos != eos else []
    parts: list[np.ndarray] = []
    for first in range(0, len(texts), _TEXTS_AT_ONCE):
        batch = list(texts[first : first + _TEXTS_AT_ONCE])
        # verbose=False: a document longer than the model's context is fine, it is cut below
        encoded = tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
        parts += [np.array([*start, *ids, eos], dtype=np.int32) for ids in encoded]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)


def pack(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, sequence_length: int, what: str
) -> Packed:
    """Cut the texts' token stream into sequences; the unfilled last one is dropped and counted.

    Raises UserError if the texts (``what`` names them) do not fill a single sequence.
    """
    stream = token_stream(texts, tokenizer)
    count = len(stream) // sequence_length
    if count == 0:
        raise UserError(
            f"{what} has {len(stream)} tokens, fewer than one sequence of {sequence_length}; give "
            "it more text or lower sequence_length"
        )
    kept = count * sequence_length
    return Packed(
        sequences=torch.from_numpy(stream[:kept]).view(count, sequence_length),
        documents=len(texts),
        tokens=len(stream),
        dropped=len(stream) - kept,
        bytes=sum(len(text.encode()) for text in texts),
    )
