"""Documents as token ids, and the windows in which a model looks at them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from freezetrain.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Document:
    """One text to evaluate: each of ``ids`` but the first is predicted, from those before it.

    ``bytes`` is the UTF-8 length of the text. Raises ``UserError`` if nothing can be predicted.
    """

    ids: list[int]
    bytes: int

    def __post_init__(self) -> None:
        if len(self.ids) < 2 or self.bytes < 1:
            raise UserError(
                "a document needs a context token, a token to predict and a byte of text, got "
                f"{len(self.ids)} ids and {self.bytes} bytes; leave it out"
            )

    @property
    def tokens(self) -> int:
        """How many tokens are predicted."""
        return len(self.ids) - 1


class Documents(list[Document]):
    """The documents of one language, and which of its texts could not be one."""

    def __init__(self, documents: Iterable[Document] = ()) -> None:
        super().__init__(documents)
        self.left_out: list[int] = []
        """Places, among the texts, of those in which a tokenizer finds nothing to predict."""
        self.left_out_first: list[str] = []
        """Where the first few of these were read."""


def encode_documents(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> Documents:
    """Tokenize ``texts`` so that every token of a text is predicted exactly once.

    The first token is predicted from BOS, else from EOS (the "rolling" convention of
    lm-evaluation-harness, https://github.com/EleutherAI/lm-evaluation-harness). A tokenizer with
    neither has no such context: the text's first token is then the context and is not predicted,
    while its bytes still count, for base and adapted model alike. No other special token is added.
    A text of which the tokenizer leaves nothing to predict is left out and counted.

    Raises ``UserError`` for an empty text, and where no text has anything to predict.
    """
    context = context_token(tokenizer)
    for number, text in enumerate(texts):
        if not text.strip():
            raise UserError(
                f"expected text in every document, got nothing but white space in document "
                f"{number} (counted from 0) of {len(texts)}; leave it out"
            )
    if not texts:
        return Documents()
    # Not verbose: texts longer than the model are cut into windows later, not a cause to warn.
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,  # a text that spells one has the tokens of the spelling
        return_attention_mask=False,
        verbose=False,
    )
    documents = Documents()
    for number, (text, ids) in enumerate(zip(texts, encoded["input_ids"], strict=True)):
        if len(context) + len(ids) < 2:
            documents.left_out.append(number)
        else:
            documents.append(Document(ids=context + list(ids), bytes=len(text.encode("utf-8"))))
    if not documents:
        raise UserError(
            f"the tokenizer makes fewer than {2 - len(context)} tokens of each of {len(texts)} "
            "documents, so that there is nothing to predict; give other texts, or the tokenizer "
            "that the model was trained with"
        )
    return documents


def context_token(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """What a text's first token is predicted from: BOS, else EOS, else nothing."""
    specials = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return [token for token in specials if token is not None][:1]


def fingerprint(document: Document) -> str:
    """Hash of a document's ids, the same on every machine."""
    ids = np.asarray(document.ids, dtype="<i8")
    return blake2b(ids.tobytes(), digest_size=8).hexdigest()


def digests(documents: Mapping[str, Sequence[Document]]) -> dict[str, str]:
    """Language -> a hash of its documents in their order."""
    return {
        language: blake2b("".join(map(fingerprint, texts)).encode(), digest_size=8).hexdigest()
        for language, texts in documents.items()
    }


@dataclass(frozen=True)
class Window:
    """A piece of a document: the last ``predicted`` of ``ids`` are predicted.

    ``before``: how many tokens of the document the windows before this one predict.
    """

    document: int
    ids: list[int]
    predicted: int
    before: int


def windows(number: int, document: Document, max_length: int, overlap: int = 1) -> Iterator[Window]:
    """Windows in which each token of the document is predicted once.

    A window has at most ``max_length`` tokens that the model is given, and one more, predicted from
    them all. Each but the first predicts those that the one before it left, from at least
    ``overlap`` tokens that are predicted no more; the last one reaches as far back as it may. With
    an ``overlap`` of 1 these are the windows of lm-evaluation-harness's ``loglikelihood_rolling``
    (``get_rolling_token_windows`` with ``context_len=overlap``,
    https://github.com/EleutherAI/lm-evaluation-harness).
    """
    done = min(max_length, document.tokens)
    yield Window(number, document.ids[: done + 1], done, 0)
    while done < document.tokens:
        predicted = min(document.tokens - done, max_length - overlap + 1)
        ids = document.ids[done + predicted - max_length : done + predicted + 1]
        yield Window(number, ids, predicted, done)
        done += predicted


def batches(longest_first: Sequence[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Consecutive windows, such that rows × longest row <= ``batch_tokens``, or a single one."""
    start = 0
    while start < len(longest_first):
        rows = max(1, batch_tokens // (len(longest_first[start].ids) - 1))
        yield list(longest_first[start : start + rows])
        start += rows
