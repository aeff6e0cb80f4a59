"""What test_zero_start.py and its worker program agree on."""

from pathlib import Path
from typing import NamedTuple

from zero_checkpoint_cells import BF16_OPTIMIZER

FSDP2 = "FSDP2"
AS_IS, STORED = "as it is", "stored base"  # other starts are clamp values


class Cell(NamedTuple):
    """A freeze that gives the frozen entries their values first, or not."""

    engine: str
    dtype: str
    start: str
    world: int

    def path(self, folder: Path) -> Path:
        return folder / f"{' '.join(map(str, self))}.safetensors"

    @property
    def before(self) -> int:
        """Steps before the freeze: ZeRO-3 keeps small parameters whole only after the first."""
        return 0 if self.start in (AS_IS, STORED) else 1

    @property
    def rounds(self) -> bool:
        """Whether fp32 masters stand behind weights in bf16."""
        return self.dtype == "bf16" and self.engine != FSDP2

    @property
    def exports(self) -> bool:
        """Whether DeepSpeed's zero_to_fp32 reads its checkpoint."""
        return self.engine not in (FSDP2, BF16_OPTIMIZER)


CELLS = [
    Cell(engine, dtype, start, world)
    for engine in ("ZeRO-1", BF16_OPTIMIZER, "ZeRO-2", FSDP2, "ZeRO-3")  # which changes torch
    for dtype in ("fp32", "bf16")
    for start in (AS_IS, STORED, "0.0", "0.1")
    for world in (2, 3)
    if dtype == "bf16" or (engine != BF16_OPTIMIZER and start in (STORED, "0.0"))
    if world == 2 or (dtype == "bf16" and start in (STORED, "0.0"))
]
