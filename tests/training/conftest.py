"""Lets the tests here import helpers of this folder and of the tests of freezing."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "freezing")]
