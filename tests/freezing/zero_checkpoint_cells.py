"""What test_zero_checkpoints.py and its worker program agree on."""

from pathlib import Path
from typing import NamedTuple

from frozen_reference import mixed_region
from torch import nn

from freezetrain.regions import Region

SAVED, END = 3, 6  # steps
BF16_OPTIMIZER = "BF16_Optimizer"  # what DeepSpeed makes of ZeRO-1 that accumulates in fp32
SOURCES = [  # on 2 ranks; ZeRO-3 last: it replaces torch's linear by one that rounds elsewhere
    *((engine, dtype) for engine in ("ZeRO-1", "ZeRO-2") for dtype in ("fp32", "bf16")),
    (BF16_OPTIMIZER, "bf16"),
    *(("ZeRO-3", dtype) for dtype in ("fp32", "bf16")),
]


class Cell(NamedTuple):
    """A run that goes on from the checkpoint that 2 ranks wrote under ``source``."""

    source: str
    dtype: str
    engine: str
    world: int
    freeze_first: bool = False
    """Freeze and then load, rather than the other way round."""

    @property
    def universal(self) -> bool:
        """Whether it needs DeepSpeed's universal format."""
        return self.world != 2 or self.engine != self.source

    def name(self) -> str:
        order = ", freeze first" if self.freeze_first else ""
        return f"{self.dtype}, {self.source} to {self.engine}, 2 to {self.world} ranks{order}"

    def path(self, folder: Path) -> Path:
        return folder / f"{self.name()}.safetensors"


def saved(folder: Path, engine: str, dtype: str) -> Path:
    """Folder of a checkpoint; the run that wrote it is told of in files beside it."""
    return folder / f"{engine} {dtype}"


def beside(folder: Path, engine: str, dtype: str, what: str) -> Path:
    """ "run": how that run went on. "consolidated": one fp32 tensor for each parameter."""
    return folder / f"{engine} {dtype} {what}.safetensors"


_OTHERS = [("ZeRO-1", "ZeRO-2"), ("ZeRO-2", "ZeRO-1")]
CELLS = [
    *(Cell(engine, dtype, engine, world) for engine, dtype in SOURCES for world in (1, 2, 3)),
    *(Cell(engine, dtype, engine, 2, freeze_first=True) for engine, dtype in SOURCES),
    *(Cell(source, dtype, engine, 2) for source, engine in _OTHERS for dtype in ("fp32", "bf16")),
]
REFUSED = [Cell("ZeRO-2", "fp32", "ZeRO-3", 2), Cell("ZeRO-3", "fp32", "ZeRO-2", 2)]


def uneven_region(model: nn.Module) -> Region:
    """Also some of a parameter of 10 entries, of which 3 ranks hold 4, 4 and 2."""
    return mixed_region(model) | Region.random(model, 0.5, seed=2, parameters=["up.bias"])
