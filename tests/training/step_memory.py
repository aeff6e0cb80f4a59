"""Prints the bytes that an optimizer's second step takes on the way: NAME SIDE of a matrix."""

import ctypes
import re
import sys
from pathlib import Path

import torch
from torch import nn

from freezetrain.recipe.optimization import Optimization
from freezetrain.training.groups import Group
from freezetrain.training.optimizer_kinds import make_optimizer


def told(what: str) -> int:
    """Kilobytes of this process."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


name, side = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
parameter = nn.Parameter(torch.randn(side, side))
parameter.grad = torch.randn(side, side)
groups = [Group(1.0, True, True, [parameter])]
optimizer = make_optimizer(groups, Optimization(optimizer=name), fused=True)
optimizer.step()
ctypes.CDLL("libc.so.6").malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
before = told("VmRSS")
optimizer.step()
print((told("VmHWM") - before) * 1024)
