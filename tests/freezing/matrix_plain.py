"""The matrix on one device and under DDP."""

from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from frozen_reference import MAX_NORM, TinyLM, loss_of
from matrix_cells import DDP, DTYPES, Cell, optimizer_of, own_rows
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class Plain:
    """bf16: autocast. bf16-true: the weights themselves. fp16: autocast and a GradScaler."""

    def __init__(self, cell: Cell, module: TinyLM, folder: Path) -> None:
        self.cell = cell
        self.module = module.bfloat16() if cell.precision == "bf16-true" else module
        self.model: nn.Module = self.module
        if cell.engine == DDP:
            self.model = DistributedDataParallel(self.module)
        self.optimizer = optimizer_of(cell.optimizer, dict(self.module.named_parameters()))
        self.folder = folder
        # So high that the first steps overflow.
        self.scaler = torch.amp.GradScaler("cpu", 2.0**20, enabled=cell.precision == "fp16")

    def step(self, batches: list[Tensor]) -> tuple[float, bool]:
        """The gradient's norm before clipping, and whether loss scaling skipped the step."""
        self.optimizer.zero_grad()
        mixed = self.cell.precision in ("bf16", "fp16")
        for number, input_ids in enumerate(batches, start=1):
            mine = own_rows(input_ids, self.cell, dist.get_rank())
            ddp = self.model if isinstance(self.model, DistributedDataParallel) else None
            with ddp.no_sync() if ddp and number < len(batches) else nullcontext():
                with torch.autocast("cpu", DTYPES[self.cell.precision], enabled=mixed):
                    logits = self.model(mine)
                self.scaler.scale(loss_of(logits.float(), mine) / len(batches)).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), MAX_NORM)
        self.scaler.step(self.optimizer)
        before = self.scaler.get_scale()
        self.scaler.update()
        return float(norm), self.scaler.get_scale() < before

    def masters(self) -> dict[str, Tensor]:
        """The parameters are what the optimizer steps."""
        return {name: value.detach() for name, value in self.module.named_parameters()}

    def checkpoint(self) -> dict[str, Tensor]:
        file = self.folder / "checkpoint.pt"
        if not dist.get_rank():
            state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state, file)
        dist.barrier()
        model = torch.load(file, weights_only=True)["model"]
        return {name.removeprefix("module."): value for name, value in model.items()}

    def export(self) -> dict[str, Tensor]:
        file = self.folder / "model.safetensors"
        if not dist.get_rank():
            save_file(self.masters(), file)
        dist.barrier()
        return load_file(file)

    def close(self) -> None:
        pass
