"""Lets the tests here start two ranks as those of the freezing do."""

import sys
from pathlib import Path

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "freezing"):
    sys.path.insert(0, str(folder))
