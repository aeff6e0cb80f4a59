"""The matrix under FSDP2 (``fully_shard``), with one mesh dimension or two."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from frozen_reference import MAX_NORM, TinyLM, loss_of
from matrix_cells import (
    DTYPES,
    HSDP,
    LAST_MICRO_STEP,
    OFFLOAD_PARAMETERS,
    Cell,
    optimizer_of,
    own_rows,
)
from torch import Tensor, nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard


class Sharded:
    """bf16 and fp16: MixedPrecisionPolicy over fp32 shards. bf16-true: shards in bf16."""

    def __init__(self, cell: Cell, module: TinyLM, folder: Path) -> None:
        self.cell = cell
        self.model: Any = module.bfloat16() if cell.precision == "bf16-true" else module
        self.folder = folder
        options: dict[str, Any] = {}
        if cell.precision in ("bf16", "fp16"):
            options["mp_policy"] = MixedPrecisionPolicy(
                param_dtype=DTYPES[cell.precision], reduce_dtype=torch.float32
            )
        if cell.variant == OFFLOAD_PARAMETERS:
            options["offload_policy"] = CPUOffloadPolicy(pin_memory=False)
        if cell.engine == HSDP:
            shape = (2, cell.world // 2)
            options["mesh"] = init_device_mesh("cpu", shape, mesh_dim_names=("copy", "shard"))
        for part in (module.up, module.down, module):
            fully_shard(part, **options)
        self.optimizer = optimizer_of(cell.optimizer, dict(module.named_parameters()))
        # So high that the first steps overflow.
        self.scaler = torch.amp.GradScaler("cpu", 2.0**18, enabled=cell.precision == "fp16")

    def step(self, batches: list[Tensor]) -> tuple[float, bool]:
        """The gradient's norm before clipping, and whether loss scaling skipped the step."""
        self.optimizer.zero_grad()
        for number, input_ids in enumerate(batches, start=1):
            if self.cell.variant == LAST_MICRO_STEP:
                self.model.set_requires_gradient_sync(number == len(batches))
            mine = own_rows(input_ids, self.cell, dist.get_rank())
            loss = loss_of(self.model(mine).float(), mine) / len(batches)
            self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm: Any = nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.scaler.step(self.optimizer)
        before = self.scaler.get_scale()
        self.scaler.update()
        return float(norm.full_tensor()), self.scaler.get_scale() < before

    def masters(self) -> dict[str, Tensor]:
        """The shards are what the optimizer steps."""
        return {name: value.full_tensor().detach() for name, value in self.model.named_parameters()}

    def checkpoint(self) -> dict[str, Tensor]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=self.folder / "dcp")
        file = self.folder / "checkpoint.pt"
        if not dist.get_rank():
            dcp_to_torch_save(self.folder / "dcp", file)
        dist.barrier()
        return torch.load(file, weights_only=True)["model"]

    def export(self) -> dict[str, Any]:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return dict(get_model_state_dict(self.model, options=options))  # empty but on rank 0

    def close(self) -> None:
        pass
