"""Safetensors files with a JSON header: written whole or not at all, checked when read."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from freezetrain.errors import UserError
from freezetrain.files import whole

MAX_SHARD_BYTES = 4_000_000_000

Shape = tuple[tuple[int, ...], torch.dtype]

KEY = "freezetrain"  # where the header stands in the safetensors metadata

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

_CODES = {dtype: code for code, dtype in DTYPES.items()}


class SafetensorsWriter:
    """Writes tensors to ``path`` one by one; a context manager, which holds none of them.

    ``header`` is JSON-able; its ``"format"`` is ``"freezetrain-WHAT/VERSION"``. ``shapes`` gives
    the shape and dtype of every tensor that will be added. Up to ``max_shard_bytes`` of tensors
    become one file; more become a folder at ``path`` of ``WHAT-00001-of-0000N.safetensors`` and
    ``WHAT.safetensors.index.json``, the layout of sharded Hugging Face checkpoints. Everything
    is written beside ``path`` and renamed into place at a clean exit (freezetrain.files.whole), so
    that ``path`` never holds half a file.

    UserError when ``path`` exists and ``overwrite`` is False, when it is a folder that holds no
    such index (never replaced, even with ``overwrite``), and when it cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        header: Mapping[str, Any],
        shapes: Mapping[str, Shape],
        *,
        overwrite: bool = False,
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> None:
        self.path = Path(path)
        self._header = dict(header)
        self._what = what_of(str(header["format"]))
        self._shapes = dict(shapes)
        self._overwrite = overwrite
        sizes = {name: prod(shape) * dtype.itemsize for name, (shape, dtype) in shapes.items()}
        self._total = sum(sizes.values())
        self._shards = split_into_shards(sizes, max_shard_bytes)
        self._files: dict[str, Path] = {}
        self._offsets: dict[str, int] = {}  # of a tensor's data in its file, in bytes
        self._missing = set(shapes)

    def __enter__(self) -> Self:
        _check_target(self.path, self._what, self._overwrite)
        try:
            with ExitStack() as stack:
                self._begin(stack.enter_context(whole(self.path, replace_folder=True)))
                self._stack = stack.pop_all()
        except OSError as error:
            raise self._cannot(error) from error
        return self

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor; they may come in any order."""
        if name not in self._missing or self._shapes[name] != (tuple(tensor.shape), tensor.dtype):
            raise ValueError(f"unexpected: {name!r}, {tensor.dtype} of {list(tensor.shape)}")
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        try:
            with open(self._files[name], "r+b") as file:
                file.seek(self._offsets[name])
                file.write(data.data)
        except OSError as error:
            raise self._cannot(error) from error
        self._missing.remove(name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        incomplete = None
        if error is None and self._missing:
            error = incomplete = ValueError(f"never added: {min(self._missing)!r}")
        try:
            self._stack.__exit__(type(error) if error else None, error, traceback)
        except OSError as refused:
            raise self._cannot(refused) from refused
        if incomplete:
            raise incomplete

    def _begin(self, new: Path) -> None:
        """Make the files, with their headers and room for all data."""
        sharded = len(self._shards) > 1
        if sharded:
            new.mkdir()
        for number, names in enumerate(self._shards, start=1):
            filename = f"{self._what}-{number:05}-of-{len(self._shards):05}.safetensors"
            file = new / filename if sharded else new
            head, places = _layout({name: self._shapes[name] for name in names}, self._header)
            self._files |= dict.fromkeys(names, file)
            self._offsets |= {name: len(head) + start for name, (start, _) in places.items()}
            with open(file, "wb") as out:
                out.write(head)
                out.truncate(len(head) + max((end for _, end in places.values()), default=0))
        if sharded:
            index = {
                "metadata": {"total_size": self._total, KEY: self._header},
                "weight_map": {name: file.name for name, file in self._files.items()},
            }
            (new / index_name(self._what)).write_text(json.dumps(index, indent=1))

    def _cannot(self, error: Exception) -> UserError:
        return UserError(f"cannot write {self.path}: {error}")


def split_into_shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in order, in as few lists as hold at most ``limit`` bytes each, or one tensor."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, more in sizes.items():
        if shards[-1] and size + more > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += more
    return shards


def what_of(format_name: str) -> str:
    """``"region"`` of ``"freezetrain-region/1"``."""
    return format_name.removeprefix(f"{KEY}-").partition("/")[0]


def index_name(what: str) -> str:
    return f"{what}.safetensors.index.json"


def _layout(
    shapes: Mapping[str, Shape], header: Mapping[str, Any]
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """What stands before the data of a file, and where each tensor's data starts and ends in it.

    The format is described at github.com/huggingface/safetensors: the length of a JSON text as 8
    bytes, the text, padded so that data is aligned, and the data without holes.
    """
    places: dict[str, tuple[int, int]] = {}
    end = 0
    # The widest dtypes first, as the library does, so that each tensor is aligned.
    for name in sorted(shapes, key=lambda name: -shapes[name][1].itemsize):
        shape, dtype = shapes[name]
        start, end = end, end + prod(shape) * dtype.itemsize
        places[name] = start, end
    described: dict[str, Any] = {"__metadata__": {KEY: json.dumps(header)}}
    for name, place in places.items():
        shape, dtype = shapes[name]
        described[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": place}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places


def _check_target(path: Path, what: str, overwrite: bool) -> None:
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise UserError(f"{path} exists; choose another path or pass overwrite")
    if path.is_dir() and not (path / index_name(what)).is_file():
        raise UserError(f"{path} is a folder that holds no {what}; choose another path")


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
