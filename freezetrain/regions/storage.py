"""Safetensors files with a JSON header: written whole or not at all, checked when read."""

import json
import os
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from freezetrain.errors import UserError, near_misses
from freezetrain.files import whole
from freezetrain.user_files import is_file, parse_json, read_json, reading

MAX_SHARD_BYTES = 4_000_000_000

Shape = tuple[tuple[int, ...], torch.dtype]

AGAIN = "copy or make it again"

KEY = "freezetrain"  # where the header stands in the safetensors metadata

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

_CODES = {dtype: code for code, dtype in DTYPES.items()}


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
    *,
    shapes: Mapping[str, Shape] | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write ``tensors``, one at a time, and ``header`` to ``path``; return ``path``.

    ``header`` is JSON-able; its ``"format"`` is ``"freezetrain-WHAT/VERSION"``. ``shapes`` gives
    the shape and dtype of every tensor, in which case each is asked for once. Up to
    ``max_shard_bytes`` of tensors become one file; more become a folder at ``path`` of
    ``WHAT-00001-of-0000N.safetensors`` and ``WHAT.safetensors.index.json``, the layout of sharded
    Hugging Face checkpoints. All is written beside ``path`` and renamed into place at the end
    (:func:`freezetrain.files.whole`), so that ``path`` never holds half a file.

    UserError when ``path`` exists and ``overwrite`` is False, when it is a folder that holds no
    such index (never replaced, even with ``overwrite``), and when it cannot be written.
    """
    path, what = Path(path), what_of(str(header["format"]))
    _check_target(path, what, overwrite)
    if shapes is None:
        shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    sizes = {name: prod(shape) * dtype.itemsize for name, (shape, dtype) in shapes.items()}
    shards = split_into_shards(sizes, max_shard_bytes)
    try:
        with whole(path, replace_folder=True) as new:
            if len(shards) == 1:
                _write_file(new, tensors, header, shapes)
                return path
            new.mkdir()
            weight_map: dict[str, str] = {}
            for number, names in enumerate(shards, start=1):
                file = new / f"{what}-{number:05}-of-{len(shards):05}.safetensors"
                _write_file(file, tensors, header, {name: shapes[name] for name in names})
                weight_map |= dict.fromkeys(names, file.name)
            metadata = {"total_size": sum(sizes.values()), KEY: dict(header)}
            index = {"metadata": metadata, "weight_map": weight_map}
            (new / index_name(what)).write_text(json.dumps(index, indent=1))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error
    return path


def _write_file(
    file: Path,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
    shapes: Mapping[str, Shape],
) -> None:
    """The tensors of ``shapes``, in their order, as one file."""
    head, starts = _layout(shapes, header)
    with open(file, "wb") as out:
        out.write(head)
        for name in shapes:
            tensor = tensors[name]
            if (tuple(tensor.shape), tensor.dtype) != shapes[name]:
                raise ValueError(f"unexpected: {name!r}, {tensor.dtype} of {list(tensor.shape)}")
            data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            out.seek(len(head) + starts[name])
            out.write(data.data)


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


def _layout(shapes: Mapping[str, Shape], header: Mapping[str, Any]) -> tuple[bytes, dict[str, int]]:
    """What stands before the data of a file, and where in the data each tensor starts.

    The format is described at github.com/huggingface/safetensors: the length of a JSON text as 8
    bytes, the text, padded so that data is aligned, and the data without holes.
    """
    starts: dict[str, int] = {}
    described: dict[str, Any] = {"__metadata__": {KEY: json.dumps(dict(header))}}
    end = 0
    # The widest dtypes first, as the library does, so that each tensor is aligned.
    for name in sorted(shapes, key=lambda name: -shapes[name][1].itemsize):
        shape, dtype = shapes[name]
        starts[name], end = end, end + prod(shape) * dtype.itemsize
        offsets = (starts[name], end)
        described[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": offsets}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, starts


def _check_target(path: Path, what: str, overwrite: bool) -> None:
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise UserError(f"{path} exists; choose another path or pass overwrite")
    if path.is_dir() and not (path / index_name(what)).is_file():
        raise UserError(f"{path} is a folder that holds no {what}; choose another path")


class StoredTensors(Mapping[str, Tensor]):
    """Name -> tensor (CPU, memory-mapped) in safetensors files.

    A tensor is mapped anew each time that it is asked for and nothing is kept, so that a loop over
    all needs the memory of one. UserError where its file is gone or damaged by then.
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
        with reading(repr(name), f"in {path}", AGAIN), safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._stored  # a Mapping would read the tensor to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def read_safetensors(path: str | Path, what: str) -> tuple[StoredTensors, dict[str, Any]]:
    """What :func:`write_safetensors` wrote: tensors, of which none is read yet, and header.

    UserError, one sentence each, for: nothing at ``path``; a file that is truncated or not
    safetensors; no freezetrain header; a header of something else than ``what`` or of another
    version than 1; a shard that is missing, belongs to another file, or lacks a tensor.
    """
    path = Path(path)
    if not path.exists():
        beside = os.listdir(path.parent) if os.access(path.parent, os.R_OK) else []
        raise UserError(f"there is no {what} at {path}{near_misses(path.name, beside)}")
    if not path.is_dir():
        in_file, header = _read_file(path, what)
        return StoredTensors(in_file), header
    index_path = path / index_name(what)
    if not index_path.is_file():
        raise UserError(f"{path} is not a {what}: the folder holds no {index_path.name}")
    index = read_json(index_path, f"the index of the {what}", AGAIN)
    with reading(f"the index of the {what}", index_path, AGAIN):
        header, weight_map = index["metadata"][KEY], dict(index["weight_map"])
        filenames = sorted(set(weight_map.values()))
        local = all(Path(filename).name == filename for filename in filenames)
    if not local:
        raise UserError(f"{index_path} names files outside its folder")
    stored: dict[str, tuple[Path, Shape]] = {}
    for filename in filenames:
        shard = path / filename
        if not is_file(shard):
            raise UserError(f"the shard {filename} of {path} is missing")
        in_shard, shard_header = _read_file(shard, what)
        if shard_header != header:
            raise UserError(f"the shard {filename} of {path} belongs to another {what}")
        stored |= in_shard
    if stored.keys() != weight_map.keys():
        name = min(stored.keys() ^ weight_map.keys())
        raise UserError(f"the index of {path} and its shards disagree about {name!r}")
    return StoredTensors(stored), header


def stored_what(path: str | Path) -> str:
    """What :func:`write_safetensors` wrote to ``path``, for example ``"region"``.

    UserError when there is nothing, or something else.
    """
    path = Path(path)
    if path.is_dir():
        for index in path.glob(index_name("*")):
            return index.name.removesuffix(index_name(""))
    elif path.is_file():
        with reading("the file", path, _EXPECTED), safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if KEY in metadata:
            return what_of(_header(metadata, path, "file")[1])
    raise UserError(f"{path} is not a file of freezetrain: {_EXPECTED}")


_EXPECTED = "give a region or scores"


def _read_file(path: Path, what: str) -> tuple[dict[str, tuple[Path, Shape]], dict[str, Any]]:
    """Which tensors a file holds, and its header."""
    if not path.is_file():  # a pipe or a device has no end
        raise UserError(f"{path} is no file; give a {what}")
    stored: dict[str, tuple[Path, Shape]] = {}
    with reading(f"the {what}", path, AGAIN), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            if part.get_dtype() not in DTYPES:
                raise ValueError(f"{name!r} is of type {part.get_dtype()}, which it never has")
            stored[name] = path, (tuple(part.get_shape()), DTYPES[part.get_dtype()])
    if KEY not in metadata:
        raise UserError(f"{path} is a safetensors file but not a freezetrain {what}")
    header, format_name = _header(metadata, path, what)
    if what_of(format_name) != what:
        raise UserError(f"{path} is a {format_name!r} file, expected a {what}")
    if format_name != f"{KEY}-{what}/1":
        raise UserError(
            f"{path} has the format {format_name!r}, this version reads '{KEY}-{what}/1'; "
            "update freezetrain"
        )
    return stored, header


def _header(metadata: Mapping[str, str], path: Path, what: str) -> tuple[dict[str, Any], str]:
    """The JSON header that the metadata hold, and its format; UserError where it is damaged."""
    with reading(f"the header of the {what}", path, AGAIN):
        header = parse_json(metadata[KEY])
        if not isinstance(header, dict) or not isinstance(header.get("format"), str):
            raise ValueError("expected a mapping with a format")
    return header, header["format"]
