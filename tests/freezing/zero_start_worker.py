"""The runs of test_zero_start.py: ``python zero_start_worker.py FOLDER``."""

import sys
from pathlib import Path
from typing import Any

import fsdp_sharded
import torch
import zero_engines
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from forked_workers import run_ranks
from frozen_reference import TinyLM, steps_of_batches
from safetensors.torch import save_file
from torch import Tensor
from zero_checkpoint_cells import uneven_region
from zero_start_cells import AS_IS, CELLS, FSDP2, STORED, Cell

from freezetrain.freezing import Freeze, freeze

REGION = uneven_region(TinyLM())
STEPS = 3


def start_of(cell: Cell) -> dict[str, Any]:
    if cell.start == AS_IS:
        return {}
    if cell.start == STORED:
        return {"base": dict(TinyLM().float().named_parameters())}
    return {"clamp": float(cell.start), "check_base": False}


Found = dict[str, dict[str, Tensor]]


def under_fsdp(cell: Cell, rank: int, folder: Path) -> tuple[Freeze, Found]:
    model, optimizer = fsdp_sharded.build(cell.dtype)
    fsdp_sharded.train_steps(model, optimizer, rank, cell.world, 0, cell.before)
    found = {"before": fsdp_sharded.whole(model)}
    logits(model)  # which leaves the root module gathered, as an evaluation does
    handle = freeze(model, optimizer, REGION, audit_every=2, **start_of(cell))
    found |= {"master": fsdp_sharded.whole(model), "logits": logits(model)}
    fsdp_sharded.train_steps(model, optimizer, rank, cell.world, cell.before, STEPS)
    found |= {"trained": fsdp_sharded.whole(model)}
    return handle, found


def under_deepspeed(cell: Cell, rank: int, folder: Path) -> tuple[Freeze, Found]:
    engine = zero_engines.build(cell.engine, cell.dtype, cell.world)
    zero_engines.train_steps(engine, rank, cell.world, 0, cell.before)
    found = {"before": zero_engines.masters(engine)}
    handle = freeze(engine, None, REGION, audit_every=2, **start_of(cell))
    found |= {"logits": logits(engine), "master": zero_engines.masters(engine)}
    found |= {"copy": zero_engines.copies(engine)}
    zero_engines.train_steps(engine, rank, cell.world, cell.before, STEPS)
    found |= {"trained": zero_engines.masters(engine), "trained copy": zero_engines.copies(engine)}
    here = folder / f"checkpoint of {cell.path(folder).name}"
    engine.save_checkpoint(here)
    if not rank and cell.exports:
        export = get_fp32_state_dict_from_zero_checkpoint(here)
        found["export"] = {name: value.clone() for name, value in export.items()}
    return handle, found


@torch.no_grad()
def logits(model: torch.nn.Module) -> dict[str, Tensor]:
    """From the first forward pass after the freeze, the same on all ranks."""
    return {"": model(steps_of_batches(1, 1)[0][0]).clone()}


def run_all(rank: int, world: int, folder: Path) -> None:
    for cell in CELLS:
        if cell.world == world:
            run = under_fsdp if cell.engine == FSDP2 else under_deepspeed
            handle, found = run(cell, rank, folder)
            handle.verify()
            tensors = {
                f"{kind}/{name}": t for kind, all_ in found.items() for name, t in all_.items()
            }
            if not rank:
                save_file(tensors, cell.path(folder), {"digest": handle.digest})


if __name__ == "__main__":
    for ranks in (2, 3):
        run_ranks(Path(sys.argv[1]) / f"on {ranks}", ranks, run_all, Path(sys.argv[1]))
