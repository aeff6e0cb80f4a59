"""Scores: a tensor per parameter, how much the loss of one language depends on each weight."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freezetrain.errors import UserError
from freezetrain.regions.base import Base
from freezetrain.regions.score_methods import per_batch
from freezetrain.regions.storage import read_safetensors, write_safetensors


class Scores(Mapping[str, Tensor]):
    """Immutable mapping of parameter name to its scores, fp32 on the CPU, in the model's shapes.

    ``base`` names the model. ``made`` says how the scores came about (JSON-able);
    :func:`freezetrain.regions.scoring.compute_scores` writes ``method``, ``language``,
    ``sequences``, ``tokens`` (predicted ones), ``batches`` (in units of the first one, so that a
    smaller last batch is a fraction), ``loss`` (nats per token) and, for selection, ``norms``
    (names of parameters of norms) and ``transposed`` (weights stored as [in, out]).

    Raises:
        UserError: a tensor that is not of a floating dtype, or holds NaN or infinity.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        base: Base | None = None,
        made: Mapping[str, Any] | None = None,
    ) -> None:
        self._tensors = {name: _checked(name, tensor) for name, tensor in tensors.items()}
        self.base = base
        self.made = dict(made or {})

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"Scores({len(self)} parameters, made={self.made})"

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a safetensors file (a folder of shards above 4 GB), whole or not at all.

        Raises:
            UserError: ``path`` exists and ``overwrite`` is false, or cannot be written.
        """
        header = {
            "format": "freezetrain-scores/1",
            "parameters": list(self),
            "base": asdict(self.base) if self.base else None,
            "made": self.made,
        }
        write_safetensors(path, self._tensors, header, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> "Scores":
        """Read what :meth:`save` wrote, memory-mapped.

        Raises:
            UserError: nothing there, truncated, not a score file, or written by another version.
        """
        tensors, header = read_safetensors(path, "scores")
        try:
            ordered = {name: tensors[name] for name in header["parameters"]}
            base = Base(**header["base"]) if header["base"] else None
            made = dict(header["made"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the header of the score file {path} is damaged: {error!r}") from error
        return cls(ordered, base, made)

    @classmethod
    def sum(cls, parts: Sequence["Scores"]) -> "Scores":
        """Add up the scores of several languages; the core region is selected from this sum.

        Each part is first brought to the scale of one batch, so that a language with more data
        does not outweigh the others. With equally many batches this is, up to a constant factor
        that no selection sees, the plain sum of Zhang et al. 2024 (arXiv 2402.14700).

        Raises:
            UserError: no parts, other parameters or shapes, another method, another base, or a
                part that does not say its method and its number of batches.
        """
        if not parts:
            raise UserError("expected the scores of at least one language to sum, got none")
        for part in parts:
            _check_same(parts[0], part)
        factors = [per_batch(part.made["method"], part.made["batches"]) for part in parts]
        total = {}
        for name in parts[0]:
            total[name] = torch.zeros_like(parts[0][name], dtype=torch.float64)
            for part, factor in zip(parts, factors, strict=True):
                total[name].add_(part[name], alpha=factor)
            total[name] = total[name].float()
        made = {
            **{key: parts[0].made.get(key, []) for key in ("norms", "transposed")},
            "method": parts[0].made["method"],
            "batches": 1,
            "sum": [
                {key: part.made.get(key) for key in ("language", "sequences", "tokens", "batches")}
                for part in parts
            ],
        }
        return cls(total, parts[0].base, made)


def _checked(name: str, tensor: Tensor) -> Tensor:
    """``tensor`` as fp32 on the CPU."""
    if not tensor.is_floating_point():
        raise UserError(f"expected floating scores of {name!r}, got {tensor.dtype}")
    tensor = tensor.detach().to("cpu", torch.float32)
    # The extremes are NaN if anything is, and cost no copy of the tensor.
    if tensor.numel() and not all(torch.isfinite(extreme) for extreme in tensor.aminmax()):
        raise UserError(f"expected finite scores, got NaN or infinity in {name!r}")
    return tensor


def _check_same(first: Scores, other: Scores) -> None:
    """Refuse to sum what does not belong together."""
    for part in (first, other):
        if not {"method", "batches"} <= part.made.keys() or not part.made["batches"] > 0:
            raise UserError("expected scores that say their method and number of batches to sum")
    if first.made["method"] != other.made["method"]:
        raise UserError(
            f"expected scores of one method to sum, got {first.made['method']!r} and "
            f"{other.made['method']!r}"
        )
    if first.base and other.base and first.base.fingerprint != other.base.fingerprint:
        raise UserError("expected scores of one base model to sum, got those of different models")
    if first.keys() != other.keys():
        name = min(first.keys() ^ other.keys())
        raise UserError(f"expected scores of the same parameters to sum, only some hold {name!r}")
    for name in first:
        if first[name].shape != other[name].shape:
            raise UserError(
                f"expected scores of one shape for {name!r}, got {list(first[name].shape)} and "
                f"{list(other[name].shape)}"
            )
