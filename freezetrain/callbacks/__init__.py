"""Lightning callbacks for any LightningModule: one hook to a file."""

from freezetrain.callbacks.average import WeightAverage
from freezetrain.callbacks.forgetting import ForgettingTracker
from freezetrain.callbacks.freeze import RegionFreeze
from freezetrain.callbacks.stopping import StopOnSignal, TimeLimit
from freezetrain.callbacks.throughput import Throughput

__all__ = [
    "ForgettingTracker",
    "RegionFreeze",
    "StopOnSignal",
    "Throughput",
    "TimeLimit",
    "WeightAverage",
]
