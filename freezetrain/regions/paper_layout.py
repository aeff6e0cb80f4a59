"""Masks as the paper's released code keeps them: a folder of ``{parameter}.pt`` bool tensors.

Zhang et al., "Unveiling Linguistic Regions in Large Language Models", arXiv 2402.14700.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from freezetrain.errors import UserError
from freezetrain.regions.entries import Entries
from freezetrain.regions.region import Region
from freezetrain.regions.resolve import about

# What can be both a parameter's dotted name and, with ".pt", the name of a file in the folder.
_NAME = re.compile(r"[^./\\:\0]+(\.[^./\\:\0]+)*")


def import_masks(folder: str | Path) -> Region:
    """Read every ``{parameter}.pt`` of ``folder``, a bool tensor of the parameter's shape.

    Loaded with ``weights_only``, so that a file cannot run code. UserError for a folder without
    such files, a symbolic link, an odd name, or a file that holds anything but a bool tensor.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.pt")) if folder.is_dir() else []
    if not files:
        raise UserError(f"expected a folder of '{{parameter}}.pt' masks, found none in {folder}")
    entries = {}
    for file in files:
        name = _checked_name(file.name.removesuffix(".pt"))
        if file.is_symlink() or not file.is_file():
            raise UserError(f"{file} is a link or not a file; put the mask itself there")
        with about(name):
            entries[name] = Entries.from_mask(_load_mask(file))
    return Region(entries, made={"operation": "import_masks", "folder": folder.name})


def export_masks(region: Region, folder: str | Path) -> Path:
    """Write ``region`` to ``folder`` in the paper's layout; return ``folder``.

    One byte a weight: the paper's layout is dense. Base and history are lost. UserError when
    ``folder`` exists, a name cannot be a file's, or the disk refuses.
    """
    folder = Path(folder)
    for name in region:
        _checked_name(name)
    try:
        folder.mkdir()
        for name, entries in region.items():
            torch.save(entries.mask(), folder / f"{name}.pt")
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write masks to {folder}: {error}") from error
    return folder


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} cannot be both a parameter's name and a file's")
    return name


def _load_mask(file: Path) -> Tensor:
    try:
        mask = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader of foreign bytes can fail in any way
        raise UserError(f"{file} is damaged or not a tensor file") from error
    if not isinstance(mask, Tensor):
        raise UserError(f"expected a bool tensor in {file}, got {type(mask).__name__}")
    return mask
