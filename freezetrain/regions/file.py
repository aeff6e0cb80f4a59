"""The region file: one safetensors file, or a folder of shards, that is checked when loaded."""

from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from freezetrain.errors import UserError
from freezetrain.regions.base import Base
from freezetrain.regions.canonical import bits_nbytes, unpack_bits
from freezetrain.regions.entries import Entries
from freezetrain.regions.parameters import about
from freezetrain.regions.region import Region
from freezetrain.regions.storage import MAX_SHARD_BYTES, read_safetensors, write_safetensors


def save_region(
    region: Region,
    path: str | Path,
    *,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write ``region`` to ``path``; return ``path``.

    Every parameter's entries stand under its name as :class:`Entries` keeps them: at most
    min(4 bytes an entry, 1 bit a weight). Whole parameters need the header alone, which holds
    each shape and kind, the base, how the region was made and its digest. UserError as in
    :func:`~freezetrain.regions.storage.write_safetensors`.
    """
    header = {
        "format": "freezetrain-region/1",
        "parameters": {
            name: {"shape": list(entries.shape), "kind": entries.kind}
            for name, entries in region.items()
        },
        "base": asdict(region.base) if region.base else None,
        "made": region.made,
        "digest": region.digest,
    }
    tensors = {name: entries.data for name, entries in region.items() if entries.data is not None}
    return write_safetensors(
        path, tensors, header, overwrite=overwrite, max_shard_bytes=max_shard_bytes
    )


def load_region(path: str | Path, model: nn.Module | None = None) -> Region:
    """Read a region and check it; given ``model``, also that it is the region's base.

    UserError, naming the first offender: as in
    :func:`~freezetrain.regions.storage.read_safetensors`; indices out of range, unsorted or
    repeated; data of another dtype or length; bits set past the last entry; a digest that
    differs; names or shapes that ``model`` lacks; another base than ``model``.
    """
    tensors, header = read_safetensors(path, "region")
    try:
        parameters = {
            str(name): (tuple(map(_whole_number, stored["shape"])), str(stored["kind"]))
            for name, stored in header["parameters"].items()
        }
        base = None if header["base"] is None else Base(**header["base"])
        made, digest = dict(header["made"]), str(header["digest"])
        if base is not None and not (
            isinstance(base.fingerprint, str)
            and isinstance(base.name, str | None)
            and isinstance(base.revision, str | None)
        ):
            raise TypeError("base")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the header of {path} is damaged; copy or make the file again") from error
    unlisted = sorted(tensors.keys() - parameters.keys())
    if unlisted:
        raise UserError(f"{path} holds data for {unlisted[0]!r}, which its header does not list")
    entries = {}
    for name, (shape, kind) in parameters.items():
        with about(f"{path}, {name}"):
            try:
                entries[name] = _checked_entries(shape, kind, tensors.get(name))
            except (RuntimeError, TypeError, OverflowError) as error:  # torch, of absurd sizes
                raise UserError(f"no tensor can have the shape {list(shape)}") from error
    region = Region(entries, base, made)
    if region.digest != digest:
        raise UserError(f"{path} is damaged: its digest differs from the one in its header")
    if model is not None:
        region.resolve(model)
        region.check_base(model)
    return region


def _whole_number(size: object) -> int:
    if type(size) is not int:
        raise TypeError("size")
    return size


def _checked_entries(shape: tuple[int, ...], kind: str, data: Tensor | None) -> Entries:
    """Entries from stored data, of which nothing is taken on trust."""
    if any(size < 0 for size in shape):
        raise UserError(f"the shape {list(shape)} has a negative size")
    if kind not in ("all", "rows", "columns", "indices", "bits"):
        raise UserError(f"unknown kind of entries {kind!r}")
    if (data is None) != (kind == "all"):
        raise UserError(f"data is {'missing' if data is None else 'unexpected'} for kind {kind!r}")
    if data is None:
        return Entries.whole(shape)
    if kind == "bits":
        return _checked_bits(shape, data)
    if data.dtype != torch.int32 or data.ndim != 1:
        raise UserError(
            f"expected int32 indices of one dimension, got {data.dtype} of {list(data.shape)}"
        )
    if not bool((data[1:] > data[:-1]).all()):
        raise UserError(f"{kind} are unsorted or repeated")
    build: dict[str, Any] = {
        "rows": Entries.from_rows,
        "columns": Entries.from_columns,
        "indices": Entries.from_indices,
    }
    return build[kind](shape, data)


def _checked_bits(shape: tuple[int, ...], data: Tensor) -> Entries:
    numel = prod(shape)
    if data.dtype != torch.uint8 or data.shape != (bits_nbytes(numel),):
        raise UserError(
            f"expected {bits_nbytes(numel)} bytes of bits (uint8), "
            f"got {data.dtype} of {list(data.shape)}"
        )
    if numel % 8 and int(data[-1]) >> numel % 8:
        raise UserError(f"bits are set beyond the last of {numel} entries")
    return Entries.from_mask(unpack_bits(data, shape))
