"""Files and folders that appear whole or not at all, and the room that is left on a disk."""

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from freezetrain.errors import UserError

UNFINISHED = ".unfinished"  # ends the name of what is being written, or was when a kill came


@contextmanager
def whole(path: str | os.PathLike[str], replace_folder: bool = False) -> Iterator[Path]:
    """Yield a place at which to write a file or a folder, which then becomes ``path``.

    The place bears the name of ``path`` and lies in a hidden folder beside it, as a rename is
    atomic inside one file system only. At the end of the block all of it is forced to the disk, so
    that a power cut leaves no empty file, and takes the place of a file at ``path``, or with
    ``replace_folder`` of whatever is there. After an error ``path`` is as it was. Raises OSError.
    """
    path = Path(path)
    scratch = Path(tempfile.mkdtemp(UNFINISHED, f".{path.name}.", path.parent))
    try:
        new = scratch / path.name
        yield new
        sync(new)
        old = scratch / f"{path.name}.old"
        if replace_folder and path.exists() and (path.is_dir() or new.is_dir()):
            path.rename(old)  # a rename replaces files only
        try:
            publish(new, path)
        except OSError:
            if old.exists() and not path.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def publish(new: Path, path: Path) -> None:
    """Give ``new``, which the disk has by now (:func:`sync`), its name ``path`` for good."""
    os.replace(new, path)
    _force(path.parent)


def sync(path: Path) -> None:
    """Wait until the disk has the file, or the folder and all that is in it."""
    for inside in path.rglob("*") if path.is_dir() else ():
        _force(inside)
    _force(path)


def _force(path: Path) -> None:
    if os.name == "nt":  # which syncs no folder, and a file only for who writes to it
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def remove_unfinished(path: Path) -> None:
    """Remove what is left beside ``path`` of starts that were killed within :func:`whole`.

    Its name may be a pattern. Nobody may be writing there now.
    """
    for scratch in path.parent.glob(f".{path.name}.*{UNFINISHED}"):
        shutil.rmtree(scratch)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` in UTF-8, so that a reader finds the old file or the new one, never half.

    Folders are made as needed. Raises ``UserError`` if the path cannot be written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as new:
            new.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"expected a path that can be written to, got {str(path)!r} ({error.strerror}); "
            "choose another path or make room there"
        ) from error


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write ``content`` as JSON; otherwise as :func:`write_text`.

    Raises ``ValueError`` for a number that JSON does not have (NaN, infinity).
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


_PIECE = 2**22  # bytes read at once


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    total = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            total = zlib.crc32(piece, total)
    return total


def require_space(folder: Path, needed: int, what: str) -> None:
    """UserError if the disk of ``folder``, which need not exist, has fewer than ``needed`` bytes.

    ``what`` is to be written there: "the tokens of 'zh'".
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{what} may take {readable(needed)} and the disk of {folder} has {readable(free)} "
            "left; free some, or choose another folder"
        )


def readable(size: float) -> str:
    """Bytes as people read them: 1.5 GB."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
