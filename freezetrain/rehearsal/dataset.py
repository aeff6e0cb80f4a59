"""The sequences of a rehearsal as rows of a dataset, in batches, and their KL."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from freezetrain.errors import UserError
from freezetrain.nll import NO_LABEL
from freezetrain.rehearsal.kl import rehearsal_kl
from freezetrain.rehearsal.pieces import AGAIN, made_of, open_piece, piece_file
from freezetrain.rehearsal.targets import Targets
from freezetrain.user_files import reading


class Rehearsal(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The sequences that `freezetrain rehearse` left in ``folder``, in a fixed order.

    Row ``i`` is a dict of ``input_ids`` [T] int64, ``top_tokens`` [T, k] integers,
    ``top_log_probs`` [T, k] and ``rest_log_prob`` [T] in float16: after token ``t`` of a sequence
    the base gives its next token the distribution that stands at ``t``. Rows are read from disk
    when asked for.

    All pieces are read once at the start and compared with their digests; of processes that share
    a folder one is enough, and the others may go without (``check=False``). UserError where the
    folder or a piece is missing, damaged, or of another rehearsal, naming it.
    """

    def __init__(self, folder: str | Path, check: bool = True) -> None:
        self.folder = Path(folder)
        self.made = made_of(self.folder)
        self._files = [piece_file(self.folder, number) for number in range(self.made.pieces)]
        self.digests: list[str] = []
        """Of the pieces, in their order."""
        starts, languages, given = [], [], []
        for number, file in enumerate(self._files):
            if not file.is_file():
                raise UserError(
                    f"{file} is missing: the rehearsal has {self.made.pieces} pieces; give the "
                    "same `freezetrain rehearse` again, which makes what is missing"
                )
            tensors, made, digest = open_piece(self.folder, number, check)
            if made != self.made:
                raise UserError(
                    f"{file} belongs to another rehearsal than the first piece there; {AGAIN}"
                )
            self.digests.append(digest)
            with reading("the rehearsal", file, AGAIN):
                starts.append(tensors["starts"].numpy().copy())
                languages.append(tensors["language"].numpy().copy())
                given.append(tensors["given"].numpy().copy())
        self._starts = starts
        self._ends = np.cumsum([len(piece) - 1 for piece in starts])
        self.lengths = np.concatenate([np.diff(piece) for piece in starts])
        """Tokens of each sequence, int64 [n]."""
        self.languages = np.concatenate(languages)
        """Number in ``made.languages`` of what each sequence was asked for, [n]."""
        self.given = np.concatenate(given)
        """Tokens of each sequence that were given and not drawn, [n]."""
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        if not 0 <= number < len(self):
            raise IndexError(f"sequence {number} of {len(self)}")
        piece = int(np.searchsorted(self._ends, number, side="right"))
        row = number - (int(self._ends[piece - 1]) if piece else 0)
        first, last = self._starts[piece][row : row + 2].tolist()
        with reading("the rehearsal", self._files[piece], AGAIN):
            if piece not in self._open:
                self._open[piece] = safe_open(self._files[piece], framework="pt")
            read = {
                name: self._open[piece].get_slice(name)[first:last]
                for name in ("tokens", "top_tokens", "top_log_probs", "rest_log_prob")
            }
        return {
            "input_ids": read["tokens"].long(),
            "top_tokens": read["top_tokens"].to(torch.int32),
            "top_log_probs": read["top_log_probs"],
            "rest_log_prob": read["rest_log_prob"],
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # files are opened anew in each process

    @property
    def digest(self) -> str:
        """SHA-256 of what all pieces hold."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()

    def require_base(self, fingerprint: str, tokenizer: str | None, what: str = "the base") -> None:
        """UserError unless the base with this fingerprint, and this tokenizer, has drawn it.

        ``tokenizer``: digest, None where there is none to compare. ``what``: the base's name.
        """
        base = self.made.base
        if tokenizer is not None and tokenizer != self.made.tokenizer:
            raise UserError(
                f"the rehearsal in {self.folder} was made with another tokenizer than that of "
                f"{what}; make one with it: freezetrain rehearse --model.path {what}"
            )
        if fingerprint != base.fingerprint:
            raise UserError(
                f"the rehearsal in {self.folder} was drawn by another model, "
                f"{base.name or 'unnamed'} with the fingerprint {base.fingerprint[:12]}, than "
                f"{what} with {fingerprint[:12]}; make one with it: freezetrain rehearse "
                f"--model.path {what}"
            )


def collate(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """A batch of rows of a :class:`Rehearsal`, and of any others that have ``input_ids``.

    Rows are filled up to the longest, L tokens. Gives ``input_ids``, ``attention_mask`` and
    ``labels`` [B, L] int64, as transformers' models take them (not shifted; -100 where none
    counts, which is all of a rehearsed row), and of the P rehearsed places of the batch
    ``kl_places`` [P] (number of a place among the B · L), ``top_tokens`` and ``top_log_probs``
    [P, k], ``rest_log_prob`` [P]. Logarithms in float16 are given as its bits, in int16: engines
    that train in bfloat16 round what is floating point in a batch.
    """
    length = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, NO_LABEL)
    places, targets = [torch.empty(0, dtype=torch.int64)], []
    for number, row in enumerate(rows):
        count = len(row["input_ids"])
        ids[number, :count] = row["input_ids"]
        mask[number, :count] = 1
        if "top_tokens" in row:
            places.append(torch.arange(count) + number * length)
            targets.append(row)
        else:
            labels[number, :count] = row.get("labels", row["input_ids"])
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    names = ("top_tokens", "top_log_probs", "rest_log_prob")
    if targets:
        stored = {name: _bits(torch.cat([row[name] for row in targets])) for name in names}
    else:
        empty = torch.empty(0, 1, dtype=torch.int16)
        stored = {"top_tokens": empty.int(), "top_log_probs": empty, "rest_log_prob": empty[:, 0]}
    return {**batch, "kl_places": torch.cat(places), **stored}


def batch_targets(batch: Mapping[str, Tensor]) -> Targets:
    """What the base says at the rehearsed places of a batch that :func:`collate` made."""
    logs = (batch[name] for name in ("top_log_probs", "rest_log_prob"))
    log_probs, rest = (v.view(torch.float16) if v.dtype == torch.int16 else v for v in logs)
    return Targets(batch["top_tokens"], log_probs, rest)


def batch_kl(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """KL(base ‖ model) in nats, [P], at the rehearsed places of a batch that :func:`collate` made.

    ``logits`` [B, L, V]. Nothing rehearsed: [0], whose sum is 0 and has a gradient.
    """
    return rehearsal_kl(logits.flatten(0, 1)[batch["kl_places"]], batch_targets(batch))


def _bits(values: Tensor) -> Tensor:
    return values.view(torch.int16) if values.dtype == torch.float16 else values
