"""Safetensors files with a JSON header: written whole or not at all, read with suspicion."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from freezetrain.errors import UserError

MAX_SHARD_BYTES = 4_000_000_000

_KEY = "freezetrain"  # where the header stands in the safetensors metadata


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
    *,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write ``tensors`` and ``header`` (JSON-able) to ``path``; return ``path``.

    ``header["format"]`` is ``"freezetrain-WHAT/VERSION"``. Up to ``max_shard_bytes`` of tensors
    become one file; more become a folder at ``path`` of ``WHAT-00001-of-0000N.safetensors`` and
    ``WHAT.safetensors.index.json``, the layout of sharded Hugging Face checkpoints. Everything
    is written beside ``path`` and renamed into place, so that ``path`` never holds half a file.

    UserError when ``path`` exists and ``overwrite`` is False, when it is a folder that holds no
    such index (never replaced, even with ``overwrite``), and when it cannot be written.
    """
    path = Path(path)
    what = _what(str(header["format"]))
    _check_target(path, what, overwrite)
    tensors = _separate(tensors)
    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.numel() * tensor.element_size(),
        filename_pattern=f"{what}{{suffix}}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    metadata = {_KEY: json.dumps(header)}
    scratch = None
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        new = scratch / "new"
        if split.is_sharded:
            new.mkdir()
            for filename, names in split.filename_to_tensors.items():
                save_file({name: tensors[name] for name in names}, new / filename, metadata)
                _flush(new / filename)
            index = {
                "metadata": {"total_size": split.metadata["total_size"], _KEY: header},
                "weight_map": split.tensor_to_filename,
            }
            (new / _index_name(what)).write_text(json.dumps(index, indent=1))
        else:
            save_file(tensors, new, metadata)
            _flush(new)
        if path.is_dir() or (split.is_sharded and path.exists()):
            path.rename(scratch / "old")  # a rename cannot replace a folder
        os.replace(new, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return path


def read_safetensors(path: str | Path, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_safetensors` wrote: tensors (memory-mapped, CPU) and header.

    UserError, one sentence each, for: nothing at ``path``; a file that is truncated or not
    safetensors; no freezetrain header; a header of something else than ``what`` or of another
    version than 1; a shard that is missing, belongs to another file, or lacks a tensor.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no {what} at {path}")
    if not path.is_dir():
        return _read_file(path, what)
    index_path = path / _index_name(what)
    if not index_path.is_file():
        raise UserError(f"{path} is not a {what}: the folder holds no {index_path.name}")
    try:
        index = json.loads(index_path.read_text())
        header, weight_map = index["metadata"][_KEY], dict(index["weight_map"])
        filenames = sorted(set(weight_map.values()))
        local = all(Path(filename).name == filename for filename in filenames)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index_path} is not the index of a {what}") from error
    if not local:
        raise UserError(f"{index_path} names files outside its folder")
    tensors: dict[str, Tensor] = {}
    for filename in filenames:
        shard = path / filename
        if not shard.is_file():
            raise UserError(f"the shard {filename} of {path} is missing")
        shard_tensors, shard_header = _read_file(shard, what)
        if shard_header != header:
            raise UserError(f"the shard {filename} of {path} belongs to another {what}")
        tensors.update(shard_tensors)
    if tensors.keys() != weight_map.keys():
        name = min(tensors.keys() ^ weight_map.keys())
        raise UserError(f"the index of {path} and its shards disagree about {name!r}")
    return tensors, header


def stored_what(path: str | Path) -> str:
    """What :func:`write_safetensors` wrote to ``path``, for example ``"region"``.

    UserError when there is nothing, or something else.
    """
    path = Path(path)
    if path.is_dir():
        for index in path.glob(_index_name("*")):
            return index.name.removesuffix(_index_name(""))
    elif path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                return _what(str(json.loads((file.metadata() or {})[_KEY])["format"]))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            pass
    raise UserError(f"{path} is not a file of freezetrain: expected a region or scores")


def _read_file(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} is truncated or not a safetensors file ({error}); copy or make it again"
        ) from error
    try:
        header = json.loads(metadata[_KEY])
        format_name = str(header["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is a safetensors file but not a freezetrain {what}") from error
    if _what(format_name) != what:
        raise UserError(f"{path} is a {format_name!r} file, expected a {what}")
    if format_name != f"{_KEY}-{what}/1":
        raise UserError(
            f"{path} has the format {format_name!r}, this version reads '{_KEY}-{what}/1'; "
            "update freezetrain"
        )
    return tensors, header


def _what(format_name: str) -> str:
    """``"region"`` of ``"freezetrain-region/1"``."""
    return format_name.removeprefix(f"{_KEY}-").partition("/")[0]


def _index_name(what: str) -> str:
    return f"{what}.safetensors.index.json"


def _check_target(path: Path, what: str, overwrite: bool) -> None:
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise UserError(f"{path} exists; choose another path or pass overwrite")
    if path.is_dir() and not (path / _index_name(what)).is_file():
        raise UserError(f"{path} is a folder that holds no {what}; choose another path")


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, none of which share memory (safetensors refuses those)."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    return separate


def _flush(path: Path) -> None:
    """Force a file to disk, so that a rename after a power cut never reveals an empty one."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
