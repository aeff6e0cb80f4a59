"""Lets the tests here and of the jobs build tiny models of other architectures."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
