"""What test_zero_kill.py and its worker program agree on."""

from pathlib import Path
from typing import NamedTuple

STEPS, SAVE_EVERY, KILLED = 8, 2, 5  # rank 1 is killed in step 5, or in the save after it


class Cell(NamedTuple):
    engine: str
    moment: str
    """Where rank 1 is killed: in a "backward" pass, a "step" or half-way through a "save"."""

    def path(self, folder: Path) -> Path:
        return folder / f"{self.engine}, killed in {self.moment}"

    def whole(self, folder: Path) -> Path:
        """Of the run that nothing interrupted."""
        return folder / self.engine


CELLS = [Cell(engine, m) for engine in ("ZeRO-2", "ZeRO-3") for m in ("backward", "step", "save")]
