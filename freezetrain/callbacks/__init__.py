"""Lightning callbacks for any LightningModule: one hook to a file."""

from freezetrain.callbacks.forgetting import ForgettingTracker
from freezetrain.callbacks.freeze import RegionFreeze

__all__ = ["ForgettingTracker", "RegionFreeze"]
