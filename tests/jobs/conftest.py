"""Lets the tests here start two ranks as those of the freezing do."""

import sys
from pathlib import Path

here = Path(__file__).parent
for folder in (here, here.parent / "freezing"):
    sys.path.insert(0, str(folder))
