"""What sequences begin with, or, of real texts, are: decided by the recipe, piece by piece."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from freezetrain.data.packing import Drawn
from freezetrain.data.texts import languages_in, read_languages
from freezetrain.data.tokens import document_start, encode, tokenize
from freezetrain.errors import UserError
from freezetrain.sampling.recipe import RehearseRecipe

Row = tuple[Tensor, int]
"""What a sequence is given, [G] int64, and its language by number."""

T = TypeVar("T")

_ENDS = re.compile(r"[\r\n]+|(?<=[.!?؟।])\s+|(?<=[。！？])")
"""What is between two sentences, or two lines."""

_AT_ONCE = 256  # documents that are looked through for prompts


@dataclass(frozen=True)
class Given:
    """The tokens that the sequences of one piece are given, equally many each."""

    tokens: Tensor
    """[n, G] int64."""
    language: Tensor
    """[n] int64, numbers in ``Plan.languages``."""


@dataclass(frozen=True)
class Plan:
    """All pieces of a rehearsal, as far as they are known before anything is drawn."""

    languages: tuple[str | None, ...]
    """What is asked for; None: nothing, a sequence begins with BOS alone."""
    pieces: Sequence[Given]
    draws: bool
    """Whether sequences go on after what is given."""

    @property
    def digest(self) -> str:
        """SHA-256 of all that is given."""
        digest = hashlib.sha256()
        for piece in self.pieces:
            digest.update(np.ascontiguousarray(piece.tokens.numpy(), "<i8").data)
            digest.update(np.ascontiguousarray(piece.language.numpy(), "<i8").data)
        return digest.hexdigest()


def plan_of(recipe: RehearseRecipe, tokenizer: PreTrainedTokenizerBase) -> Plan:
    """What each piece is given, the same in every process.

    Languages take turns within a piece; pieces that begin with BOS lie evenly among those that
    begin with prompts. Raises UserError for languages that the texts lack, for texts too short, and
    for a tokenizer without BOS and EOS where a sequence is to begin with one.
    """
    if recipe.texts is not None:
        return _of_texts(recipe, tokenizer)
    start = _start(tokenizer)
    bos, every = recipe.bos_sequences, recipe.sequences
    if bos and not start:
        raise UserError(
            f"{bos} of {every} sequences are to begin with BOS, and the tokenizer has neither BOS "
            "nor EOS; give languages, and from_bos 0, so that all begin with prompts"
        )
    asked: tuple[str | None, ...] = (None, *recipe.languages) if bos else (*recipe.languages,)
    unasked = [(torch.tensor(start), 0)] * bos
    first = 1 if bos else 0
    counts = _shares(every - bos, len(recipe.languages))
    rows = [
        [(torch.tensor(start + prompt), first + number) for prompt in found]
        for number, found in enumerate(
            _prompts(recipe, name, count, tokenizer)
            for name, count in zip(recipe.languages, counts, strict=True)
        )
    ]
    pieces = _evenly(_cut(unasked, recipe.batch), _cut(_in_turns(rows), recipe.batch))
    return Plan(asked, pieces, draws=True)


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What stands before a document in training: BOS, or the EOS of the document before it."""
    eos = tokenizer.eos_token_id
    return document_start(tokenizer) or ([] if eos is None else [eos])


def _prompts(
    recipe: RehearseRecipe, language: str, count: int, tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    """``count`` beginnings of sentences, unlike each other as long as there are others.

    One of each document, in random order, then a further one of each. Not of whole documents: a
    heading says little of the language, and the same in many of them.
    """
    texts = read_languages(recipe.prompts, [language])[language].to_train()
    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.randperm(len(texts), generator=generator).tolist()
    begun: list[list[list[int]]] = []  # of each document that has any
    for first in range(0, len(order), _AT_ONCE):
        if len(begun) >= count:
            break
        some = (texts[number] for number in order[first : first + _AT_ONCE])
        begun += filter(None, (_sentences(text, recipe.prompt_tokens, tokenizer) for text in some))
    found = list(dict.fromkeys(map(tuple, _in_turns(begun))))
    if not found:
        raise UserError(
            f"no training document of language {language!r} has {recipe.prompt_tokens} tokens to "
            "begin a sequence with; lower prompt_tokens, or give other prompts"
        )
    return [list(found[number % len(found)]) for number in range(count)]


def _sentences(text: str, wanted: int, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The first ``wanted`` tokens of each sentence or line that has so many, else of the text."""
    text = text[: 2048 + 32 * wanted]  # characters; the rest of a long document is not tokenized
    encoded = tokenizer(
        [*filter(str.strip, _ENDS.split(text)), text],
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    found = [list(ids[:wanted]) for ids in encoded if len(ids) >= wanted]
    return found[:-1] or found


def _of_texts(recipe: RehearseRecipe, tokenizer: PreTrainedTokenizerBase) -> Plan:
    assert recipe.texts is not None
    names = recipe.languages or languages_in(recipe.texts)
    if recipe.sequences < len(names):
        raise UserError(
            f"sequences is {recipe.sequences} and the texts hold {len(names)} languages; give as "
            "many or more, or name languages"
        )
    next(encode(["a"], tokenizer))  # complains of a tokenizer that cannot do it
    rows: list[list[Row]] = []
    for number, count in enumerate(_shares(recipe.sequences, len(names))):
        store = tokenize(recipe.texts, names[number], tokenizer, recipe.cache, recipe.workers)
        drawn = Drawn(store, recipe.sequence_length, count, seed=recipe.seed)
        rows.append([(row, number) for batch in drawn.batches(_AT_ONCE) for row in batch])
    return Plan(tuple(names), _cut(_in_turns(rows), recipe.batch), draws=False)


def _shares(count: int, parts: int) -> list[int]:
    """``count`` in ``parts`` of which none is larger than another by more than 1."""
    return [count // parts + (number < count % parts) for number in range(parts)]


def _in_turns(rows: Sequence[Sequence[T]]) -> list[T]:
    return [row for turn in zip_longest(*rows) for row in turn if row is not None]


def _cut(rows: Sequence[Row], size: int) -> list[Given]:
    pieces = [rows[first : first + size] for first in range(0, len(rows), size)]
    return [
        Given(torch.stack([row for row, _ in piece]), torch.tensor([n for _, n in piece]))
        for piece in pieces
    ]


def _evenly(one: Sequence[Given], other: Sequence[Given]) -> list[Given]:
    """Both in their own order, each spread over the whole."""
    placed = [
        ((number + 0.5) / len(pieces), which, piece)
        for which, pieces in enumerate((one, other))
        for number, piece in enumerate(pieces)
    ]
    return [piece for _, _, piece in sorted(placed, key=lambda item: item[:2])]
