"""Masks and scores as the paper's released code keeps them: a folder of ``{parameter}.pt`` tensors.

Zhang et al., "Unveiling Linguistic Regions in Large Language Models", arXiv 2402.14700: a bool
tensor for each parameter of a region, and gradient × parameter (``grad-mul-param``), signed, for
each parameter of the model.
"""

import re
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any, cast
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch
from torch import Tensor

from freezetrain.errors import UserError
from freezetrain.files import require_space, whole
from freezetrain.regions import Entries, Region
from freezetrain.regions.parameters import errors_begin_with, layer_of
from freezetrain.scoring.scores import OnDemand, Scores
from freezetrain.user_files import reading

# What can be both a parameter's dotted name and, with ".pt", the name of a file in the folder.
_NAME = re.compile(r"[^./\\:\0]+(\.[^./\\:\0]+)*")


def _files(folder: Path, what: str) -> OnDemand:
    """Name -> tensor of ``{name}.pt``, read anew whenever it is asked for.

    UserError for a folder without such files, a symbolic link or an odd name; of a file that holds
    anything but a tensor, when it is read.
    """
    files = sorted(folder.glob("*.pt")) if folder.is_dir() else []
    if not files:
        raise UserError(f"expected a folder of '{{parameter}}.pt' {what}, found none in {folder}")
    named = {_checked_name(file.name.removesuffix(".pt")): file for file in files}
    for file in files:
        _check_file(file, what)

    def read(name: str) -> Tensor:
        return _tensor(named[name], what)

    return OnDemand(named, lambda name: tuple(read(name).shape), read)


def _tensor(file: Path, what: str) -> Tensor:
    """The tensor in ``file``, mapped; loaded with ``weights_only``, so that it runs no code.

    No more memory is needed than the file is long: a tensor whose entries share stored values, and
    a compressed file, either of which can claim to be of any size, are refused.
    """
    _check_file(file, what)
    with reading(f"the {what} in", file, "make the file again with torch.save"):
        if is_zipfile(file):
            with ZipFile(file) as archive:
                if any(part.compress_type != ZIP_STORED for part in archive.infolist()):
                    raise ValueError("it is compressed")
        try:
            tensor = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # a file of torch before 1.6 cannot be mapped
            tensor = torch.load(file, map_location="cpu", weights_only=True)
    if kind := _unlike_a_plain_one(tensor):
        raise UserError(f"expected a dense tensor of {what} in {file}, got {kind}")
    return cast(Tensor, tensor)


def _unlike_a_plain_one(tensor: Any) -> str | None:
    """What ``tensor`` is, where it is not one value in memory for each of its entries."""
    if not isinstance(tensor, Tensor):
        return type(tensor).__name__
    if tensor.is_meta:
        return "Tensor without data"
    if tensor.layout != torch.strided:
        return f"one of layout {tensor.layout}"
    if tensor.is_quantized:
        return "a quantized one"
    stored = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.numel() > stored:
        return f"{tensor.numel():,} entries that share {stored:,} stored values (call contiguous())"
    return None


def holds_masks(folder: str | Path) -> bool:
    """Whether the ``{parameter}.pt`` of ``folder`` are masks rather than scores.

    UserError for a folder that has none, or whose first is neither.
    """
    files = _files(Path(folder), "masks or scores")
    first = next(iter(files))
    tensor = files[first]
    if tensor.dtype != torch.bool and not tensor.is_floating_point():
        raise UserError(
            f"expected bool masks or floating scores in {folder}, got {tensor.dtype} for {first!r}"
        )
    return tensor.dtype == torch.bool


def import_masks(folder: str | Path) -> Region:
    """Read every ``{parameter}.pt`` of ``folder``, a bool tensor of the parameter's shape.

    One at a time. UserError for a folder without such files, a symbolic link, an odd name, or a
    file that holds anything but a bool tensor.
    """
    folder = Path(folder)
    files = _files(folder, "masks")
    entries = {}
    for name in files:
        with errors_begin_with(name):
            entries[name] = Entries.from_mask(files[name])
    return Region(entries, made={"operation": "import_masks", "folder": folder.name})


def import_scores(folder: str | Path, language: str | None = None) -> Scores:
    """Read ``{parameter}.pt`` files of gradient × parameter: ``taylor`` scores, without the sign.

    Of parameters within layers alone, as the paper selects from; others (``made["left_out"]``) are
    not read. What has "norm" in its name counts as a norm's, as in the paper's code. The number of
    batches is not told and counts as one, so that a sum over languages is the plain sum.

    A tensor is read when it is asked for. UserError as :func:`import_masks`, for floating tensors;
    also where no file is of a layer's parameter.
    """
    folder = Path(folder)
    files = _files(folder, "scores")
    names = [name for name in files if layer_of(name) is not None]
    if not names:
        raise UserError(
            f"expected scores of parameters in numbered layers (layers.0. ...) in {folder}, got "
            f"{next(iter(files))!r} and none of these"
        )
    made = {
        "method": "taylor",
        "language": language,
        "sequences": None,
        "tokens": None,
        "batches": 1,
        "loss": None,
        "norms": [name for name in names if "norm" in name],
        "transposed": [],
        "folder": folder.name,
        "left_out": [name for name in files if name not in names],
    }
    return Scores(OnDemand(names, files.shape, lambda name: files[name].abs()), made=made)


def export_masks(region: Region, folder: str | Path) -> Path:
    """Write ``region`` to ``folder`` in the paper's layout; return ``folder``.

    One byte a weight: the paper's layout is dense. Base and history are lost. UserError when
    ``folder`` exists, a name cannot be a file's, or the disk refuses.
    """
    size = sum(prod(entries.shape) for entries in region.values())
    require_space(Path(folder), size, "a byte for each weight of the region's parameters")
    return _write(region, ((name, entries.mask()) for name, entries in region.items()), folder)


def export_scores(scores: Scores, folder: str | Path) -> Path:
    """Write ``scores`` to ``folder`` in the paper's layout, fp32; return ``folder``.

    One tensor at a time. UserError as :func:`export_masks`, and for scores of another method than
    ``taylor`` and ``taylor-abs``: the layout means gradient × parameter.
    """
    method = scores.made.get("method")
    if method not in ("taylor", "taylor-abs"):
        raise UserError(
            f"expected scores of gradient × parameter (taylor, taylor-abs), which the paper's "
            f"layout holds, got those of method {method!r}"
        )
    # Cloned, since torch.save writes all of the memory that a tensor is a view of.
    return _write(scores, ((name, scores[name].clone()) for name in scores), folder)


def _write(names: Iterable[str], tensors: Iterable[tuple[str, Tensor]], folder: str | Path) -> Path:
    """A folder of tensors, which appears whole or not at all."""
    folder = Path(folder)
    for name in names:
        _checked_name(name)
    if folder.exists():
        raise UserError(f"cannot write to {folder}: it exists; choose another folder")
    try:
        with whole(folder) as new:
            new.mkdir()
            for name, tensor in tensors:
                torch.save(tensor, new / f"{name}.pt")
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write to {folder}: {error}") from error
    return folder


def _check_file(file: Path, what: str) -> None:
    if file.is_symlink() or not file.is_file():
        raise UserError(f"{file} is a link or not a file; put the {what} themselves there")


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} cannot be both a parameter's name and a file's")
    return name
