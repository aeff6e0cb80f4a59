"""Lets the tests here, and the processes that they start, import ``frozen_reference``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "freezing"))
