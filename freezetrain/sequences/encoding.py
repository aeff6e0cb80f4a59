"""Texts → token ids, one list a document, and what tells one tokenizer from another."""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from transformers import PreTrainedTokenizerBase

from freezetrain.errors import UserError

_ENCODED_AT_ONCE = 2**20  # characters of text


def encode(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Token ids of each document: `[BOS] tokens EOS`.

    BOS only where the tokenizer has one that is not its EOS. A text that spells a special token
    gets the tokens of the spelling. Raises UserError for a tokenizer without an EOS.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if eos is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token to separate documents with; set its "
            "eos_token and save it again"
        )
    start = [bos] if bos is not None and bos != eos else []
    for batch in _batches(texts):
        # verbose=False: a document longer than the model's context is fine, it is cut later
        encoded = tokenizer(
            batch,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )
        yield from ([*start, *ids, eos] for ids in cast(list[list[int]], encoded["input_ids"]))


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _ENCODED_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of all that decides which ids a text gets, wherever the tokenizer came from."""
    digest = hashlib.sha256(json.dumps([tokenizer.bos_token_id, tokenizer.eos_token_id]).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        told = json.loads(backend.to_str())
        told |= {"truncation": None, "padding": None}  # left over from earlier calls
        digest.update(json.dumps(told).encode())
        return digest.hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
