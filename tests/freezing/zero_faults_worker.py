"""The runs of test_zero_faults.py: ``python zero_faults_worker.py FOLDER``.

Each cell breaks something, trains and notes what this rank is told.
"""

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import prod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import deepspeed
import fsdp_sharded
import torch
import zero_engines
from forked_workers import run_ranks
from frozen_reference import TinyLM, adamw
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from zero_checkpoint_cells import uneven_region
from zero_fault_cells import (
    AUDIT_EVERY,
    CELLS,
    COPY,
    FIRST,
    LOADED,
    MASTER,
    NOT_MASKED,
    NOT_PUT_BACK,
    RANKS_DIFFER,
    SKIPPED,
    START,
    WRITTEN,
    Cell,
)

from freezetrain.errors import CheckError
from freezetrain.freezing import freeze
from freezetrain.freezing.hooks import GradientMask, StepGuard
from freezetrain.freezing.layout import Shard
from freezetrain.regions import Entries, Resolved

REGION = uneven_region(TinyLM())


class Run:
    """The tiny model under an engine."""

    def __init__(self, cell: Cell, rank: int, world: int) -> None:
        self.cell, self.rank, self.world = cell, rank, world
        self.optimizer = None
        self.model: Any
        if cell.engine == "DDP":
            seed = rank if cell.fault == RANKS_DIFFER else 0
            self.model = DistributedDataParallel(TinyLM(seed).float(), init_sync=False)
            self.optimizer = adamw(self.model.parameters())
        elif cell.engine == "FSDP2":
            self.model, self.optimizer = fsdp_sharded.build(cell.dtype)
        else:
            self.model = zero_engines.build(cell.engine, cell.dtype, world)

    def train(self, first: int, last: int) -> None:
        if self.optimizer is None:
            zero_engines.train_steps(self.model, self.rank, self.world, first, last)
        else:
            args = self.model, self.optimizer, self.rank, self.world, first, last
            fsdp_sharded.train_steps(*args)

    def parameter(self, name: str) -> Any:
        prefix = "" if self.cell.engine == "FSDP2" else "module."
        return dict(self.model.named_parameters())[prefix + name]

    @torch.no_grad()
    def load_others(self) -> None:
        """Into the model that the engine has, past the engine."""
        parameters = list(self.model.parameters())
        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0):
            self.model.module.load_state_dict(TinyLM(seed=1).state_dict())

    @torch.no_grad()
    def write(self) -> None:
        """Change one frozen entry, on rank 1 alone."""
        name, index = WRITTEN
        parameter = self.parameter(name)
        if self.cell.fault == MASTER and self.optimizer is None:
            whole = deepspeed.utils.safe_get_full_fp32_param(parameter)
            whole.view(-1)[index] += 1
            deepspeed.utils.safe_set_full_fp32_param(parameter, whole)  # its owner is rank 1
        elif self.rank == 1 and self.cell.engine == "FSDP2":
            parameter.to_local().view(-1)[index - parameter.numel() // 2] += 1
        elif self.rank == 1 and self.cell.engine == "ZeRO-3" and self.cell.fault == COPY:
            parameter.ds_tensor.data[index - parameter.ds_numel // 2] += 1
        elif self.rank == 1:
            parameter.data.view(-1)[index] += 1


def nothing(*_: Any) -> None:
    pass


def moved(start: int, length: int, owner: Tensor) -> int:
    """One entry further, or before, within bounds."""
    return start + 1 if start + 1 + length <= owner.numel() else max(start - 1, 0)


def shifted(fault: str) -> dict[str, Callable[..., Shard]]:
    """Methods of ``Shard`` that make shards one entry further, or before, within bounds."""
    part, held_by = Shard.part, Shard.held_by

    def broken_part(
        resolved: Resolved,
        number: int,
        owner: Tensor,
        first: int,
        shape: tuple[int, ...],
        start: int | None = None,
    ) -> Shard:
        length = prod(shape)
        if fault == START and start is not None:
            start = moved(start, length, owner)
        elif fault == FIRST and length < resolved.entries.numel:
            first += 1 if first + 1 + length <= resolved.entries.numel else -1
        return part(resolved, number, owner, first, shape, start)

    def broken_held_by(shard: Shard, owner: Tensor, start: int) -> Shard:
        if fault == START:
            start = moved(start, shard.entries.numel, owner)
        return held_by(shard, owner, start)

    return {"part": broken_part, "held_by": broken_held_by}


def broken(fault: str) -> AbstractContextManager[object]:
    """While the freeze begins."""
    if fault == SKIPPED:
        return patch.object(GradientMask, "_mask", nothing)
    if fault in (FIRST, START):
        return patch.multiple(Shard, **shifted(fault))
    return nullcontext()


def broken_later(fault: str) -> AbstractContextManager[object]:
    """While training, from the second step on."""
    if fault == NOT_MASKED:
        return patch.object(Entries, "fill", nothing)
    if fault == NOT_PUT_BACK:
        return patch.object(StepGuard, "_write", nothing)
    return nullcontext()


def told(cell: Cell, rank: int, world: int) -> str | None:
    """What this rank is told within one interval of audits."""
    run = Run(cell, rank, world)
    if cell.fault == LOADED:
        run.load_others()
    try:
        with broken(cell.fault):
            freeze(run.model, run.optimizer, REGION, audit_every=AUDIT_EVERY)
        run.train(0, 1)
        with broken_later(cell.fault):
            run.train(1, 2)
            if cell.fault in (COPY, MASTER):
                run.write()
            run.train(2, 1 + AUDIT_EVERY)
    except CheckError as error:
        return str(error)
    return None


def run_all(rank: int, world: int, folder: Path) -> None:
    messages = [told(cell, rank, world) for cell in CELLS]
    (folder / f"{rank}.json").write_text(json.dumps(messages), encoding="utf-8")


if __name__ == "__main__":
    run_ranks(Path(sys.argv[1]) / "store", 2, run_all, Path(sys.argv[1]))
