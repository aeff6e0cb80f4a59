"""Lightning callbacks for any LightningModule: one hook to a file."""

from freezetrain.callbacks.average import WeightAverage
from freezetrain.callbacks.base_average import BaseAverage
from freezetrain.callbacks.base_penalty import BasePenalty
from freezetrain.callbacks.board import ForgettingBoard
from freezetrain.callbacks.brake import ForgettingBrake
from freezetrain.callbacks.forgetting import ForgettingTracker
from freezetrain.callbacks.freeze import RegionFreeze
from freezetrain.callbacks.stopping import StopOnSignal, TimeLimit
from freezetrain.callbacks.throughput import Throughput

__all__ = [
    "BaseAverage",
    "BasePenalty",
    "ForgettingBoard",
    "ForgettingBrake",
    "ForgettingTracker",
    "RegionFreeze",
    "StopOnSignal",
    "Throughput",
    "TimeLimit",
    "WeightAverage",
]
