"""Room on a disk, asked about before hours of work are to be written to it."""

import shutil
from pathlib import Path

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
