"""Further pre-training with regions of weights frozen bit for bit.

The public names are loaded on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freezetrain.callbacks import ForgettingBrake, ForgettingTracker, RegionFreeze
    from freezetrain.errors import CheckError, UserError
    from freezetrain.evaluation import ForgettingWatch
    from freezetrain.freezing import freeze
    from freezetrain.regions import Region, ablate, perturb

__version__ = "0.1.0"

_HOMES = {
    "CheckError": "freezetrain.errors",
    "ForgettingBrake": "freezetrain.callbacks",
    "ForgettingTracker": "freezetrain.callbacks",
    "ForgettingWatch": "freezetrain.evaluation",
    "Region": "freezetrain.regions",
    "RegionFreeze": "freezetrain.callbacks",
    "UserError": "freezetrain.errors",
    "ablate": "freezetrain.regions",
    "freeze": "freezetrain.freezing",
    "perturb": "freezetrain.regions",
}

__all__ = [
    "CheckError",
    "ForgettingBrake",
    "ForgettingTracker",
    "ForgettingWatch",
    "Region",
    "RegionFreeze",
    "UserError",
    "__version__",
    "ablate",
    "freeze",
    "perturb",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'freezetrain' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
