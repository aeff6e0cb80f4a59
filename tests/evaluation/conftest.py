"""Lets the tests here, and the processes that they start, import helpers here and in freezing."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "freezing")]
