"""The runs of test_zero_checkpoints.py: ``python zero_checkpoints_worker.py FOLDER``.

Two ranks train and save at every ZeRO stage. Processes that know nothing of them go on from what
lies on disk: as many ranks as before and others, at the same stage and at others.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.checkpoint.ds_to_universal import main as convert
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from forked_workers import run_ranks
from frozen_reference import TinyLM
from safetensors.torch import save_file
from torch import Tensor
from zero_checkpoint_cells import (
    BF16_OPTIMIZER,
    CELLS,
    END,
    REFUSED,
    SAVED,
    SOURCES,
    Cell,
    beside,
    saved,
    uneven_region,
)
from zero_engines import build, copies, masters, train_steps

from freezetrain.freezing import Freeze, freeze

REGION = uneven_region(TinyLM())
STORED = dict(TinyLM().float().named_parameters())  # to which fp32 masters of bf16 copies differ


def train_and_save(rank: int, world: int, folder: Path) -> None:
    for name, dtype in SOURCES:
        engine = build(name, dtype, world)
        handle = freeze(engine, None, REGION, base=STORED, audit_every=2)
        train_steps(engine, rank, world, 0, SAVED)
        here = saved(folder, name, dtype)
        engine.save_checkpoint(here, tag="saved", client_state={"digest": handle.digest})
        losses = train_steps(engine, rank, world, SAVED, END)
        handle.verify()
        write(beside(folder, name, dtype, "run"), engine, losses, [handle.digest])


def write(path: Path, engine: Any, losses: list[float], digests: list[str]) -> None:
    """What a run came to: its weights, losses and digests."""
    tensors = {f"master.{name}": value for name, value in masters(engine).items()}
    tensors |= {f"copy.{name}": value for name, value in copies(engine).items()}
    if not dist.get_rank():
        save_file(tensors, path, {"losses": json.dumps(losses), "digests": json.dumps(digests)})


def convert_all(rank: int, world: int, folder: Path) -> None:
    """To DeepSpeed's universal format, and to one fp32 state dict."""
    for name, dtype in SOURCES:
        here = saved(folder, name, dtype)
        arguments = Namespace(
            input_folder=str(here / "saved"),
            output_folder=str(here / "universal"),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,  # ZeRO-1 and 2: it wants what Megatron would have saved
        )
        convert(arguments)
        if name == BF16_OPTIMIZER:  # whose files zero_to_fp32 takes for no ZeRO checkpoint
            weights = from_universal(here / "universal")
        else:
            weights = get_fp32_state_dict_from_zero_checkpoint(here, tag="saved")
        whole = {name: value.clone() for name, value in weights.items()}
        save_file(whole, beside(folder, name, dtype, "consolidated"))


def from_universal(folder: Path) -> dict[str, Tensor]:
    """The fp32 masters, one file each."""
    files = (folder / "zero").glob("*/fp32.pt")
    weights = {file.parent.name: torch.load(file, weights_only=True)["param"] for file in files}
    # The second name of a tied parameter has no master: what lies there are its 16-bit weights.
    return weights | {"head.weight": weights["embedding.weight"]}


def load(cell: Cell, folder: Path) -> tuple[Any, Freeze, str]:
    """A new engine with the checkpoint in it, its freeze, and the digest that was saved."""
    options = {"checkpoint": {"load_universal": True}} if cell.universal else {}
    engine = build(cell.engine, cell.dtype, cell.world, **options)
    handle = None
    if cell.freeze_first:
        handle = freeze(engine, None, REGION, base=STORED, audit_every=2)
    tag = "universal" if cell.universal else "saved"
    _, client = engine.load_checkpoint(saved(folder, cell.source, cell.dtype), tag=tag)
    handle = handle or freeze(engine, None, REGION, check_base=False, audit_every=2)
    return engine, handle, client["digest"]


def go_on(rank: int, world: int, folder: Path) -> None:
    # ZeRO-3 last, see SOURCES.
    for cell in sorted(CELLS, key=lambda cell: cell.engine):
        if cell.world == world:
            engine, handle, digest = load(cell, folder)
            losses = train_steps(engine, rank, world, SAVED, END)
            handle.verify()
            write(cell.path(folder), engine, losses, [digest, handle.digest])


def fail_to_load(rank: int, world: int, folder: Path) -> None:
    for cell in REFUSED:
        try:
            load(cell, folder)
        except Exception as error:
            cell.path(folder).with_suffix(f".{rank}").write_text(repr(error), encoding="utf-8")


def main(folder: Path) -> None:
    run_ranks(folder / "train", 2, train_and_save, folder)
    run_ranks(folder / "convert", 1, convert_all, folder)
    for world in (1, 2, 3):
        run_ranks(folder / f"go on {world}", world, go_on, folder)
    run_ranks(folder / "fail", 2, fail_to_load, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
