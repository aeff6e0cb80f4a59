"""Lets the tests here build other decoders, as those of regions do."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "regions"))
