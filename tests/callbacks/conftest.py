"""Lets the tests here, and the ranks that they start, import helpers of this folder."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
