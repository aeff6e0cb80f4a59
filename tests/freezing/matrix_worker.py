"""The engine matrix: ``python matrix_worker.py FOLDER``.

One process group for each number of ranks runs its cells one after the other, and then the
refusals. Each rank writes ``FOLDER/WORLD/cell-NUMBER/RANK.json`` and ``RANK.safetensors``. What a
cell raises is its outcome. The ranks are forked, so that imports are paid for once.
"""

import gc
import json
import multiprocessing
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from frozen_reference import steps_of_batches
from matrix_cells import DDP, FSDP2, HSDP, NO_FREEZE, PLAIN, STORED_BASE, WORLDS, Cell, cells
from matrix_fsdp import Sharded
from matrix_plain import Plain
from matrix_reference import not_trained, region_of, start
from matrix_refused import refusals
from matrix_zero import DeepSpeed, cannot_run
from safetensors.torch import save_file
from torch import Tensor, nn

from freezetrain.errors import CheckError
from freezetrain.freezing import Freeze, freeze

LIMIT = timedelta(seconds=60)  # for a collective


def run(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train, and write this rank's view of the weights; the rest of the outcome is returned."""
    module = start(cell)
    for name in not_trained(cell):
        module.get_parameter(name).requires_grad_(False)
    stored = {name: value.detach().clone() for name, value in module.named_parameters()}
    trained = _engine(cell)(cell, module, folder)
    handle = None
    if cell.variant != NO_FREEZE:
        base = stored if cell.variant == STORED_BASE else None
        handle = freeze(
            trained.model,
            trained.optimizer,
            region_of(cell),
            base=base,
            audit_every=2,
            replicated=False if cell.engine == PLAIN else None,
        )
    norms, skipped = [], []
    for number, batches in enumerate(steps_of_batches(cell.steps, rows=cell.rows)):
        norm, skip = trained.step(batches)
        norms.append(norm)
        if skip:
            skipped.append(number)
    outcome: dict[str, Any] = {"norms": norms, "skipped": skipped}
    if handle is not None:
        outcome |= {"verified": handle.verify(), "count": handle.count}
        outcome |= {"digest": handle.digest, "engine": handle.engine}
    tensors = {
        "master": trained.masters(),
        "checkpoint": trained.checkpoint(),
        "export": trained.export(),
        "forward": seen_in_forward(trained.model),
    }
    if handle is not None:
        outcome["after_evaluation"] = _complaint(handle)
        handle.remove()
    trained.close()
    flat = {
        f"{kind}/{name}": values[name].detach().contiguous().clone()
        for kind, values in tensors.items()
        for name in stored
        if values  # gathered on rank 0 alone
    }
    save_file(flat, folder / f"{dist.get_rank()}.safetensors")
    return outcome


def _complaint(handle: Freeze) -> str:
    """What verify says once a forward pass without backward has left weights gathered."""
    try:
        handle.verify()
    except CheckError as error:
        return str(error)
    return ""


def _engine(cell: Cell) -> type:
    if cell.engine in (PLAIN, DDP):
        return Plain
    return Sharded if cell.engine in (FSDP2, HSDP) else DeepSpeed


def seen_in_forward(model: nn.Module) -> dict[str, Tensor]:
    """The weights as each layer finds them when a forward pass reaches it, whole."""
    seen: dict[str, Tensor] = {}

    def look(name: str, module: nn.Module, _: Any) -> None:
        for key, value in module.named_parameters(recurse=False):
            seen[f"{name.removeprefix('module.')}.{key}"] = value.detach().clone()

    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name: look(name, module, args))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    with torch.no_grad():
        model(steps_of_batches(1, 1)[0][0])
    for handle in handles:
        handle.remove()
    return seen


def attempt(cell: Cell, folder: Path) -> dict[str, Any]:
    """The outcome of a cell: what it raises, if it does."""
    reason = cannot_run(cell)
    if reason:
        return {"not run": reason}
    try:
        return run(cell, folder)
    except Exception:
        return {"error": traceback.format_exc()}


def run_rank(rank: int, world: int, folder: Path) -> None:
    """All cells of one process group, in a process that has just been forked."""
    output = os.open(folder / f"log-{rank}.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=LIMIT)
    for number, cell in enumerate(cells(world)):
        here = folder / f"cell-{number}"
        here.mkdir(exist_ok=True)
        outcome = attempt(cell, here)
        (here / f"{rank}.json").write_text(json.dumps(outcome), encoding="utf-8")
        # Not by a collective: a cell that raised on one rank leaves others waiting in another.
        store.set(f"{number}-{rank}", "done")
        store.wait([f"{number}-{other}" for other in range(world)], 2 * LIMIT)
        dist.barrier()  # raises where such a cell has broken the group: no more cells then
    if world == 2:
        (folder / f"refused-{rank}.json").write_text(json.dumps(refusals()), encoding="utf-8")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a regular exit


def main(folder: Path) -> None:
    gc.freeze()  # DeepSpeed collects garbage a few times for each engine that it makes
    fork = multiprocessing.get_context("fork")
    for world in WORLDS:
        here = folder / str(world)
        here.mkdir()
        ranks = [fork.Process(target=run_rank, args=(rank, world, here)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
