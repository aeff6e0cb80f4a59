"""The region file: one safetensors file, or a folder of shards, that is checked when it is read."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freezetrain.errors import UserError
from freezetrain.regions.base import Base
from freezetrain.regions.canonical import bits_nbytes, unpack_bits
from freezetrain.regions.entries import Entries
from freezetrain.regions.parameters import errors_begin_with
from freezetrain.regions.storage import (
    AGAIN,
    MAX_SHARD_BYTES,
    read_safetensors,
    write_safetensors,
)
from freezetrain.user_files import reading


def digest_of(region: Mapping[str, Entries]) -> str:
    """SHA-256 over names, shapes and entries of the parameters that have any, by sorted names."""
    digest = hashlib.sha256()
    for name in sorted(region):
        entries = region[name]
        if not entries.count:
            continue
        head = [name, list(entries.shape), entries.kind, entries.nbytes]
        digest.update(json.dumps(head).encode())
        if entries.data is not None:
            array = entries.data.numpy()
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def write_region_file(
    path: str | Path,
    region: Mapping[str, Entries],
    base: Base | None,
    made: Mapping[str, Any],
    *,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write entries by parameter, with their base and how they were made; return ``path``.

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
        "base": asdict(base) if base else None,
        "made": made,
        "digest": digest_of(region),
    }
    tensors = {name: entries.data for name, entries in region.items() if entries.data is not None}
    return write_safetensors(
        path, tensors, header, overwrite=overwrite, max_shard_bytes=max_shard_bytes
    )


def read_region_file(path: str | Path) -> tuple[dict[str, Entries], Base | None, dict[str, Any]]:
    """What :func:`write_region_file` was given: entries by parameter, base, how they were made.

    UserError, naming the first offender: as in
    :func:`~freezetrain.regions.storage.read_safetensors`; indices out of range, unsorted or
    repeated; data of another dtype or length; bits set past the last entry; a digest that
    differs.
    """
    tensors, header = read_safetensors(path, "region")
    with reading("the header of the region", path, AGAIN):
        parameters = {
            str(name): (tuple(map(_size, stored["shape"])), str(stored["kind"]))
            for name, stored in header["parameters"].items()
        }
        base = None if header["base"] is None else base_from(header["base"])
        made, digest = dict(header["made"]), str(header["digest"])
    unlisted = sorted(tensors.keys() - parameters.keys())
    if unlisted:
        raise UserError(f"{path} holds data for {unlisted[0]!r}, which its header does not list")
    region = {}
    for name, (shape, kind) in parameters.items():
        with errors_begin_with(f"{path}, {name}"):
            try:
                region[name] = _checked_entries(shape, kind, tensors.get(name))
            except (RuntimeError, TypeError, OverflowError) as error:  # torch, of absurd sizes
                raise UserError(f"no tensor can have the shape {list(shape)}") from error
    if digest_of(region) != digest:
        raise UserError(f"{path} is damaged: its digest differs from the one in its header")
    return region, base, made


def _size(size: object) -> int:
    if type(size) is not int:
        raise ValueError(f"expected whole numbers as a shape, got {size!r}")
    return size


def base_from(fields: Mapping[str, Any]) -> Base:
    """The base that a header names; ValueError or TypeError where it names none."""
    base = Base(**fields)
    strings = isinstance(base.name, str | None) and isinstance(base.revision, str | None)
    if not strings or not isinstance(base.fingerprint, str):
        raise ValueError("expected a base of a name, a revision and a fingerprint")
    return base


_MOST_ENTRIES = 2**36
"""Of a parameter: a whole one costs a file nothing, and a mask of it a byte an entry."""


def _checked_entries(shape: tuple[int, ...], kind: str, data: Tensor | None) -> Entries:
    """Entries from stored data, of which nothing is taken on trust."""
    if any(size < 0 for size in shape):
        raise UserError(f"the shape {list(shape)} has a negative size")
    if prod(shape) > _MOST_ENTRIES:
        raise UserError(
            f"it claims {prod(shape):,} entries of shape {list(shape)}, more than a parameter of "
            f"any model has; {AGAIN}"
        )
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
    if kind == "rows":
        return Entries.from_rows(shape, data)
    if kind == "columns":
        return Entries.from_columns(shape, data)
    return Entries.from_indices(shape, data)


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
