"""Pieces of a rehearsal on disk: sequences with the base's targets, written whole and checked."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freezetrain.errors import UserError
from freezetrain.regions.base import Base
from freezetrain.regions.file import base_from
from freezetrain.regions.storage import read_safetensors, write_safetensors
from freezetrain.rehearsal.targets import Targets
from freezetrain.user_files import reading

FORMAT = "freezetrain-rehearsal/1"

AGAIN = "delete it and give the same `freezetrain rehearse` again, which makes what is missing"


@dataclass(frozen=True)
class Made:
    """How all pieces of a folder came about."""

    base: Base
    tokenizer: str
    """Digest of the tokenizer."""
    vocabulary: int
    """Tokens that the base has logits of."""
    k: int
    """Likeliest tokens that are stored of each place."""
    sequence_length: int
    """Tokens of a sequence, at most."""
    languages: tuple[str | None, ...]
    """Languages that were asked for; None: nothing was, a sequence begins with BOS alone."""
    pieces: int
    how: Mapping[str, Any]
    """Settings that decide what is in the pieces, JSON-able."""


@dataclass(frozen=True)
class Piece:
    """Sequences, one after another, with the base's targets at each place."""

    tokens: Tensor
    """[P] token ids of all sequences."""
    starts: Tensor
    """[n + 1] where each of n sequences begins, and where the last ends; int64."""
    language: Tensor
    """[n] number of what was asked for in ``Made.languages``."""
    given: Tensor
    """[n] tokens at a sequence's beginning that were given and not drawn."""
    targets: Targets
    """P places, the next token's distribution after each token."""


def piece_file(folder: Path, number: int) -> Path:
    """Where piece ``number`` of a rehearsal's folder is."""
    return folder / "pieces" / f"{number:05d}.safetensors"


def bytes_of_place(vocabulary: int, k: int) -> int:
    """Bytes on disk of a place: its token, k tokens with log-probabilities, and the rest."""
    return (k + 1) * _id_type(vocabulary).itemsize + 2 * (k + 1)


def write_piece(folder: Path, number: int, piece: Piece, made: Made) -> Path:
    """Write a piece, whole or not at all; log-probabilities are rounded to float16."""
    ids = _id_type(made.vocabulary)
    tensors = {
        "tokens": piece.tokens.to(ids),
        "starts": piece.starts.long(),
        "language": piece.language.int(),
        "given": piece.given.int(),
        "top_tokens": piece.targets.tokens.to(ids),
        "top_log_probs": piece.targets.log_probs.half(),
        "rest_log_prob": piece.targets.rest.half(),
    }
    header = {"format": FORMAT, **asdict(made), "piece": number, "digest": _digest(tensors)}
    file = piece_file(folder, number)
    file.parent.mkdir(parents=True, exist_ok=True)
    # A piece is one file, so that rows are read from it without a look into an index.
    return write_safetensors(file, tensors, header, max_shard_bytes=1 << 62)


def open_piece(
    folder: Path, number: int, check: bool = True
) -> tuple[Mapping[str, Tensor], Made, str]:
    """What the file of piece ``number`` holds, how it was made, and the digest of it.

    A tensor is read where it is asked for; ``check`` reads all and compares them with the digest.
    UserError where the file is damaged, naming it.
    """
    file = piece_file(folder, number)
    tensors, made, stored, digest = _open(file)
    if stored != number or (check and _digest(tensors) != digest):
        raise UserError(f"{file} is damaged: it does not hold what was written; {AGAIN}")
    return tensors, made, digest


def read_piece(folder: Path, number: int) -> tuple[Piece, Made, str]:
    """Piece ``number``, compared with its digest, as :func:`open_piece` gives it."""
    tensors, made, digest = open_piece(folder, number)
    with reading("the rehearsal", piece_file(folder, number), AGAIN):
        piece = Piece(
            tokens=tensors["tokens"],
            starts=tensors["starts"],
            language=tensors["language"],
            given=tensors["given"],
            targets=Targets(
                tensors["top_tokens"], tensors["top_log_probs"], tensors["rest_log_prob"]
            ),
        )
        return piece, made, digest


def made_of(folder: Path) -> Made:
    """How the first piece in ``folder`` was made. UserError where there is none."""
    files = sorted(piece_file(folder, 0).parent.glob("[0-9]*.safetensors"))
    if not files:
        raise UserError(
            f"{folder} holds no rehearsal; give a folder that `freezetrain rehearse` made"
        )
    return _open(files[0])[1]


def _id_type(vocabulary: int) -> torch.dtype:
    return torch.uint16 if vocabulary <= 1 << 16 else torch.int32


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _open(file: Path) -> tuple[Mapping[str, Tensor], Made, int, str]:
    """A piece's tensors, none read yet, how it was made, its number, and the digest of them."""
    tensors, header = read_safetensors(file, "rehearsal")
    with reading("the rehearsal", file, AGAIN):
        made = Made(
            base=base_from(header["base"]),
            tokenizer=str(header["tokenizer"]),
            vocabulary=int(header["vocabulary"]),
            k=int(header["k"]),
            sequence_length=int(header["sequence_length"]),
            languages=tuple(header["languages"]),
            pieces=int(header["pieces"]),
            how=dict(header["how"]),
        )
        return tensors, made, int(header["piece"]), str(header["digest"])
