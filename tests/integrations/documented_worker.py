"""One rank that runs examples, one after the other: ``python documented_worker.py FILE...``."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

if __name__ == "__main__":
    torch.set_num_threads(1)
    for file in sys.argv[1:]:
        exec(
            compile(Path(file).read_text(encoding="utf-8"), file, "exec"), {"__name__": "__main__"}
        )
        dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo may abort at exit
