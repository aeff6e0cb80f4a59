"""Lets the tests here, and the processes that they start, import the references."""

import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """It keeps what it found out of one trainer for the next in the same process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
