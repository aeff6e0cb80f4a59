"""Safetensors files with a JSON header: written whole or not at all, read with suspicion."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from freezetrain.errors import UserError
from freezetrain.regions.writer import (
    DTYPES,
    KEY,
    MAX_SHARD_BYTES,
    SafetensorsWriter,
    Shape,
    index_name,
    what_of,
)

__all__ = [
    "MAX_SHARD_BYTES",
    "SafetensorsWriter",
    "StoredTensors",
    "read_safetensors",
    "stored_what",
    "write_safetensors",
]


class StoredTensors(Mapping[str, Tensor]):
    """Name -> tensor (CPU, memory-mapped) in safetensors files.

    Each time that one is asked for it is mapped anew and nothing is kept, so that a loop over all
    needs the memory of one. UserError where its file is gone or damaged by then.
    """

    def __init__(self, stored: Mapping[str, tuple[Path, Shape]]) -> None:
        self._stored = dict(stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; its data is not read."""
        return self._stored[name][1][0]

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor; its data is not read."""
        return self._stored[name][1][1]

    def __getitem__(self, name: str) -> Tensor:
        path = self._stored[name][0]
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from error

    def __contains__(self, name: object) -> bool:
        return name in self._stored  # a Mapping would read the tensor to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
    *,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write ``tensors`` and ``header`` to ``path`` as :class:`SafetensorsWriter`; return ``path``.

    Tensors that are read when asked for are asked for one at a time.
    """
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    with SafetensorsWriter(
        path, header, shapes, overwrite=overwrite, max_shard_bytes=max_shard_bytes
    ) as writer:
        for name in shapes:
            writer.add(name, tensors[name])
    return Path(path)


def read_safetensors(path: str | Path, what: str) -> tuple[StoredTensors, dict[str, Any]]:
    """What :func:`write_safetensors` wrote: tensors, of which none is read yet, and header.

    UserError, one sentence each, for: nothing at ``path``; a file that is truncated or not
    safetensors; no freezetrain header; a header of something else than ``what`` or of another
    version than 1; a shard that is missing, belongs to another file, or lacks a tensor.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no {what} at {path}")
    if not path.is_dir():
        stored, header = _read_file(path, what)
        return StoredTensors(stored), header
    index_path = path / index_name(what)
    if not index_path.is_file():
        raise UserError(f"{path} is not a {what}: the folder holds no {index_path.name}")
    try:
        index = json.loads(index_path.read_text())
        header, weight_map = index["metadata"][KEY], dict(index["weight_map"])
        filenames = sorted(set(weight_map.values()))
        local = all(Path(filename).name == filename for filename in filenames)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index_path} is not the index of a {what}") from error
    if not local:
        raise UserError(f"{index_path} names files outside its folder")
    found: dict[str, tuple[Path, Shape]] = {}
    for filename in filenames:
        shard = path / filename
        if not shard.is_file():
            raise UserError(f"the shard {filename} of {path} is missing")
        in_shard, shard_header = _read_file(shard, what)
        if shard_header != header:
            raise UserError(f"the shard {filename} of {path} belongs to another {what}")
        found |= in_shard
    if found.keys() != weight_map.keys():
        name = min(found.keys() ^ weight_map.keys())
        raise UserError(f"the index of {path} and its shards disagree about {name!r}")
    return StoredTensors(found), header


def stored_what(path: str | Path) -> str:
    """What :func:`write_safetensors` wrote to ``path``, for example ``"region"``.

    UserError when there is nothing, or something else.
    """
    path = Path(path)
    if path.is_dir():
        for index in path.glob(index_name("*")):
            return index.name.removesuffix(index_name(""))
    elif path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                return what_of(str(json.loads((file.metadata() or {})[KEY])["format"]))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            pass
    raise UserError(f"{path} is not a file of freezetrain: expected a region or scores")


def _read_file(path: Path, what: str) -> tuple[dict[str, tuple[Path, Shape]], dict[str, Any]]:
    """Which tensors a file holds, and its header."""
    stored: dict[str, tuple[Path, Shape]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                stored[name] = path, (tuple(part.get_shape()), DTYPES[part.get_dtype()])
    except (OSError, SafetensorError, KeyError) as error:
        raise _damaged(path, error) from error
    try:
        header = json.loads(metadata[KEY])
        format_name = str(header["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is a safetensors file but not a freezetrain {what}") from error
    if what_of(format_name) != what:
        raise UserError(f"{path} is a {format_name!r} file, expected a {what}")
    if format_name != f"{KEY}-{what}/1":
        raise UserError(
            f"{path} has the format {format_name!r}, this version reads '{KEY}-{what}/1'; "
            "update freezetrain"
        )
    return stored, header


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is truncated or not a safetensors file ({error}); copy or make it again"
    )
