"""Lets the tests here start two ranks as those of the freezing do."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "freezing"))
