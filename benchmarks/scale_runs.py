"""What each rank of scale.py's checking runs does. Rank 0 leaves what was measured in FOUND's file.

Real freezes on real engines of a small model: the bytes that they hold and the seconds that mask
and guard take, beside the memory bandwidth that this many processes have at the same time.
"""

import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.engines_worker import held_bytes, make_engine, make_model, make_region, train
from benchmarks.harness import finish
from freezetrain.freezing import freeze

APART = 101  # entries between two that are touched: as with 1%, about; no power of two


class Plain:
    """A model in one process or under DDP, with the calls of a DeepSpeed engine."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        several = dist.is_initialized() and dist.get_world_size() > 1
        self.model = DistributedDataParallel(model) if several else model

    def __call__(self, **inputs: Tensor) -> Any:
        return self.model(**inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def destroy(self) -> None:
        pass


def bandwidths(elements: int, line: int, device: str = "cpu") -> dict[str, float]:
    """Bytes a second, read and written, of 4-byte elements: ``bandwidth`` when one tensor is
    copied to another, ``scattered`` when single entries are written, each in a line of its own."""
    source, target = torch.ones(2, elements, device=device)  # zeros might share pages
    some = target[::APART]
    return {
        "bandwidth": 2 * 4 * elements / _seconds(lambda: target.copy_(source), device),
        "scattered": 2 * line * len(some) / _seconds(lambda: some.fill_(1.0), device),
    }


def _seconds(work: Callable[[], object], device: str, rounds: int = 9) -> float:
    spent = []
    for _ in range(rounds + 1):
        finish(device)
        start = time.perf_counter()
        work()
        finish(device)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent[1:])


def run(size: dict[str, Any], engine: str, region: tuple[str, float], steps: int) -> dict[str, Any]:
    """A freeze of this rank: bytes that it holds, and seconds of each of ``steps`` steps."""
    model = make_model(size)
    chosen = make_region(model, *region)
    if engine == "DDP":
        trained: Any = Plain(model)
        handle = freeze(trained.model, trained.optimizer, chosen)
    else:
        trained = make_engine(model, int(engine[-1]), 1, 1, size["dtype"])
        handle = freeze(trained, None, chosen)
    batch = torch.randint(size["rows"], (1, size["tokens"]))
    seconds = []
    for number in range(2 + steps):  # the first two are audited
        before = handle.seconds
        train(trained, [batch])
        if number >= 2:
            seconds.append(handle.seconds - before)
    handle.verify()
    found = {**held_bytes(handle), "seconds": seconds}
    handle.remove()
    trained.destroy()
    return found


def run_all(
    size: dict[str, Any], engines: list[str], regions: dict, steps: int, line: int
) -> dict[str, Any]:
    """This rank's bandwidths, and its run of every engine and region."""
    weights = sum(parameter.numel() for parameter in make_model(size).parameters())
    found: dict[str, Any] = {"machine": bandwidths(weights, line), "runs": {}}
    for engine in engines:
        for name, region in regions.items():
            found["runs"][f"{engine}, {name}"] = run(size, engine, region, steps)
            gc.collect()
    return found


def main(**settings: Any) -> None:
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    deepspeed.init_distributed("gloo")
    dist.barrier()  # all ranks want the memory's bandwidth at once
    ranks: list = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, run_all(**settings))
    if dist.get_rank() == 0:
        Path(os.environ["FOUND"]).write_text(json.dumps(ranks))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort a regular exit
