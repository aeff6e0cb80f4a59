"""What was read of each language, and how well a tokenizer knows it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers.pre_tokenizers import ByteLevel

from freezetrain.evaluation.documents import Document
from freezetrain.formats import fixed, language_and_code, share
from freezetrain.tables import Column, Table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextFacts:
    """The documents of one language that are evaluated. Where most tokens are ``unknown`` or
    ``byte_fallback``, the model was hardly made for the language, and figures per token mean
    little.
    """

    language: str
    documents: int
    bytes: int
    """Of UTF-8."""
    tokens: int
    """Those that are predicted."""
    unknown: float | None
    """Share of the tokens that stand for what the tokenizer does not know, and say nothing of the
    text; None where it has no such token."""
    byte_fallback: float | None
    """Share of the tokens that are pieces of a character: the 256 bytes ``<0x00>`` to ``<0xFF>``
    that SentencePiece falls back to, or, in byte-level BPE, those whose bytes are not valid UTF-8
    by themselves; None for a tokenizer of another kind."""
    left_out: int = 0
    """Documents of which the tokenizer leaves nothing to predict; they are not evaluated."""
    left_out_first: str = ""
    """Where the first few of these were read."""

    @property
    def bytes_per_token(self) -> float | None:
        return self.bytes / self.tokens if self.tokens else None


def text_facts(
    documents: Mapping[str, Sequence[Document]], tokenizer: "PreTrainedTokenizerBase"
) -> list[TextFacts]:
    """The facts of each language of ``documents``, whose tokens ``tokenizer`` made."""
    unknown = tokenizer.unk_token_id
    fallback = _byte_pieces(tokenizer)
    facts = []
    for language, texts in documents.items():
        counts = _counts(texts)
        total = int(counts.sum())
        facts.append(
            TextFacts(
                language,
                documents=len(texts),
                bytes=sum(document.bytes for document in texts),
                tokens=total,
                unknown=None if unknown is None else _share(counts, [unknown], total),
                byte_fallback=None if fallback is None else _share(counts, fallback, total),
                left_out=len(getattr(texts, "left_out", ())),
                left_out_first="; ".join(getattr(texts, "left_out_first", ())),
            )
        )
    return facts


def texts_table(facts: Sequence[TextFacts], title: str, not_read: Sequence[str] = ()) -> Table:
    """``not_read``: files of the texts that are not read, each with the reason."""
    columns = [
        Column("language", "language", language_and_code, text=True),
        Column("documents", "documents"),
        Column("bytes", "bytes"),
        Column("tokens", "tokens"),
        Column("bytes/token", "bytes_per_token", lambda value: fixed(value, 2)),
        Column("unknown", "unknown", share),
        Column("byte fallback", "byte_fallback", share),
    ]
    notes = [note for note in (left_out(facts), not_read_note(not_read)) if note]
    return Table(title, columns, facts, note="; ".join(notes), sortable=True)


def not_read_note(files: Sequence[str]) -> str:
    """The first of the files, and how many there are; nothing without any."""
    if not files:
        return ""
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return f"files not read: {', '.join(files[:_NAMED])}{more}"


_NAMED = 5  # files that are not read


def left_out(facts: Sequence[TextFacts]) -> str:
    """What was not evaluated, in a sentence; nothing where all was."""
    some = [language for language in facts if language.left_out]
    if not some:
        return ""
    named = ", ".join(f"{language.left_out} of {language.language}" for language in some)
    first = "; ".join(language.left_out_first for language in some if language.left_out_first)
    return (
        f"documents of which the tokenizer leaves nothing to predict, left out: {named}"
        f"{f' (first {first})' if first else ''}"
    )


def _byte_pieces(tokenizer: "PreTrainedTokenizerBase") -> set[int] | None:
    """Ids of the tokens that are pieces of a character; None where the tokenizer has no such kind.

    The kind shows in its vocabulary, which holds either all 256 bytes as SentencePiece spells
    them, or all 256 characters that byte-level BPE writes bytes with.
    """
    vocabulary = tokenizer.get_vocab()
    spelled = {token: number for token, number in vocabulary.items() if _SPELLED.fullmatch(token)}
    if len(spelled) == 256:
        return set(spelled.values())
    alphabet = _byte_alphabet()
    if not alphabet.keys() <= vocabulary.keys():
        return None
    added = tokenizer.added_tokens_encoder  # these are spelled as they are, not in the alphabet
    return {
        number
        for token, number in vocabulary.items()
        if token not in added and alphabet.keys() >= set(token) and not _whole(token, alphabet)
    }


_SPELLED = re.compile(r"<0x[0-9A-F]{2}>")


def _byte_alphabet() -> dict[str, int]:
    """The byte that each character of byte-level BPE stands for.

    As GPT-2 chose them: printable Latin-1 characters are their own bytes, and the other bytes are,
    in order, the characters from 256 on (https://github.com/openai/gpt-2, src/encoder.py).
    """
    characters = sorted(ByteLevel.alphabet())
    own = {character: ord(character) for character in characters if ord(character) < 256}
    others = [character for character in characters if character not in own]
    rest = sorted(set(range(256)) - set(own.values()))
    return {**own, **dict(zip(others, rest, strict=True))}


def _whole(token: str, alphabet: Mapping[str, int]) -> bool:
    try:
        bytes(alphabet[character] for character in token).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _counts(texts: Iterable[Document]) -> NDArray[np.int64]:
    """How often each token is predicted: [largest id + 1] int64."""
    return np.bincount(np.concatenate([np.array(text.ids[1:]) for text in texts]))


def _share(counts: NDArray[np.int64], tokens: Iterable[int], total: int) -> float:
    return int(counts[[token for token in tokens if token < len(counts)]].sum()) / total
