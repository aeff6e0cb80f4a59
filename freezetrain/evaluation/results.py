"""Results files: JSON that is either whole or absent."""

import json
import os
from pathlib import Path
from typing import Any

from freezetrain.errors import UserError


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
