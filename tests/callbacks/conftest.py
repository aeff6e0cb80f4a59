"""Lets the tests here, and the ranks that they start, import helpers here and in freezing."""

import sys
from pathlib import Path

here = Path(__file__).parent
sys.path += [str(here), str(here.parent / "freezing")]
