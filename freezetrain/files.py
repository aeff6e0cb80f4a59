"""Files of results, whole or absent, and room on the disk asked about before work begins."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from freezetrain.errors import UserError


def readable(size: float) -> str:
    """Bytes as people read them: 1.5 GB."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


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


def write_results(path: str | os.PathLike[str], results: Any) -> None:
    """Write ``results`` as JSON, so that a reader finds the old file or the new one, never half.

    Folders are made as needed. Raises ``UserError`` if the path cannot be written to, and
    ``ValueError`` for a number that JSON does not have (NaN, infinity).
    """
    write_whole(path, json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` in UTF-8, whole or not at all; otherwise as ``write_results``."""
    path = Path(path)
    # In the same folder, as a rename is atomic inside one file system only.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"expected a path that can be written to, got {str(path)!r} ({error.strerror}); "
            "choose another path or make room there"
        ) from error
