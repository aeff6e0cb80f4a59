"""Texts as token ids with the one context token that lets the first token be predicted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


def encode_documents(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[Document]:
    """Tokenize ``texts`` so that every token of a text is predicted exactly once.

    The first token is predicted from BOS, else from EOS (the "rolling" convention of
    lm-evaluation-harness, https://github.com/EleutherAI/lm-evaluation-harness). A tokenizer with
    neither has no such context: the text's first token is then the context and is not predicted,
    while its bytes still count, for base and adapted model alike. No other special token is added.

    Raises ``UserError`` for an empty text or one in which nothing can be predicted.
    """
    specials = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    context = [token for token in specials if token is not None][:1]
    for number, text in enumerate(texts):
        if not text.strip():
            raise UserError(
                f"expected text in every document, got nothing but white space in document "
                f"{number} (counted from 0) of {len(texts)}; leave it out"
            )
    if not texts:
        return []
    # Not verbose: texts longer than the model are cut into windows later, not a cause to warn.
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,  # a text that spells one has the tokens of the spelling
        return_attention_mask=False,
        verbose=False,
    )
    documents = []
    for number, (text, ids) in enumerate(zip(texts, encoded["input_ids"], strict=True)):
        if len(context) + len(ids) < 2:
            raise UserError(
                f"document {number} (counted from 0) has {len(ids)} tokens and the tokenizer has "
                f"{'a' if context else 'no'} BOS or EOS token to predict the first from, so there "
                "is nothing to predict; leave it out"
            )
        documents.append(Document(ids=context + list(ids), bytes=len(text.encode("utf-8"))))
    return documents
