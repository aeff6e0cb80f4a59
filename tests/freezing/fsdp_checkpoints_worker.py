"""The runs of test_fsdp_checkpoints.py: ``python fsdp_checkpoints_worker.py FOLDER``.

Two ranks train and save; 1, 2 and 3 ranks that know nothing of them go on from the files.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from forked_workers import run_ranks
from frozen_reference import TinyLM
from fsdp_sharded import build, train_steps, whole
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from zero_checkpoint_cells import END, SAVED, uneven_region

from freezetrain.freezing import freeze

REGION = uneven_region(TinyLM())


def train_and_save(rank: int, world: int, folder: Path) -> None:
    for dtype in ("fp32", "bf16"):
        model, optimizer = build(dtype)
        handle = freeze(model, optimizer, REGION, audit_every=2)
        train_steps(model, optimizer, rank, world, 0, SAVED)
        weights, states = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": states, "digest": handle.digest}
        dcp.save(state, checkpoint_id=folder / dtype)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        consolidated: dict[str, Any] = get_model_state_dict(model, options=options)
        if not rank:  # it has no weights elsewhere
            copied = {name: value.clone() for name, value in consolidated.items()}
            save_file(copied, folder / f"{dtype}.consolidated.safetensors")
        losses = train_steps(model, optimizer, rank, world, SAVED, END)
        handle.verify()
        write(folder / f"{dtype}.run.safetensors", model, losses, [handle.digest])


def go_on(rank: int, world: int, folder: Path, freeze_first: bool) -> None:
    for dtype in ("fp32", "bf16"):
        model, optimizer = build(dtype)
        handle = None
        if freeze_first:
            handle = freeze(model, optimizer, REGION, audit_every=2)
        weights, states = get_state_dict(model, optimizer)
        state: dict[str, Any] = {"model": weights, "optimizer": states, "digest": ""}
        dcp.load(state, checkpoint_id=folder / dtype)
        set_state_dict(
            model, optimizer, model_state_dict=weights, optim_state_dict=state["optimizer"]
        )
        handle = handle or freeze(model, optimizer, REGION, check_base=False, audit_every=2)
        losses = train_steps(model, optimizer, rank, world, SAVED, END)
        handle.verify()
        order = "-freeze-first" if freeze_first else ""
        path = folder / f"{dtype}.on-{world}{order}.safetensors"
        write(path, model, losses, [state["digest"], handle.digest])


def write(path: Path, model: nn.Module, losses: list[float], digests: list[str]) -> None:
    weights = whole(model)
    if not dist.get_rank():
        save_file(weights, path, {"losses": json.dumps(losses), "digests": json.dumps(digests)})


def main(folder: Path) -> None:
    run_ranks(folder / "train", 2, train_and_save, folder)
    for world in (1, 2, 3):
        run_ranks(folder / f"go on {world}", world, go_on, folder, False)
    run_ranks(folder / "freeze first", 2, go_on, folder, True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
