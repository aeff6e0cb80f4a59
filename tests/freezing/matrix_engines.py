"""One training run of the matrix under each engine; only ranks import this."""

import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from deepspeed.accelerator import get_accelerator
from deepspeed.checkpoint.constants import PARAM_SLICE_MAPPINGS, SINGLE_PARTITION_OF_FP32_GROUPS
from deepspeed.utils import safe_get_full_fp32_param
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from frozen_reference import MAX_NORM, TinyLM, loss_of
from matrix_cells import (
    BF16_OPTIMIZER,
    CPU_ADAM,
    DDP,
    DTYPES,
    HSDP,
    LAST_MICRO_STEP,
    OFFLOAD_PARAMETERS,
    OVERLAP,
    SCATTERED,
    SMALL_BUCKETS,
    STAGE_0,
    SUB_GROUPS,
    ZERO_INIT,
    Cell,
    optimizer_of,
    own_rows,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.cpp_extension import get_default_build_root

logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
# It asks whether fp16 is fast on this processor. PyTorch computes in it on any.
get_accelerator().is_fp16_supported = lambda: True


class Plain:
    """One device or DDP. bf16: autocast. bf16-true: its own weights. fp16: and a GradScaler."""

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


class Sharded:
    """FSDP2. bf16 and fp16: MixedPrecisionPolicy over fp32 shards. bf16-true: shards in bf16."""

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


def configuration(cell: Cell) -> dict[str, Any]:
    stage = 0 if cell.engine == STAGE_0 else int(cell.engine[len("ZeRO-")])
    # Biases and norms stay whole on every rank, matrices do not.
    zero: dict[str, Any] = {
        "stage": stage,
        "stage3_param_persistence_threshold": 20,
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    if "offload" in cell.engine:
        zero["offload_optimizer"] = {"device": "cpu"}
    if cell.engine == SUB_GROUPS:
        zero["sub_group_size"] = 40
    if cell.variant == OFFLOAD_PARAMETERS:
        zero["offload_param"] = {"device": "cpu"}
    if cell.variant == SCATTERED:
        zero["contiguous_gradients"] = False
    if cell.variant == OVERLAP:
        zero["overlap_comm"] = True
    if cell.variant == SMALL_BUCKETS:
        zero |= {"reduce_bucket_size": 50, "allgather_bucket_size": 50}
        zero |= {"stage3_prefetch_bucket_size": 50, "stage3_max_live_parameters": 50}
    result: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": cell.rows // cell.world,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": MAX_NORM,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if cell.precision == "bf16":
        result["bf16"] = {"enabled": True}
    if cell.engine == BF16_OPTIMIZER:
        result["data_types"] = {"grad_accum_dtype": "fp32"}
    if cell.precision == "fp16":  # so high that the first steps overflow
        result["fp16"] = {"enabled": True, "initial_scale_power": 17, "hysteresis": 1}
    return result


def cannot_run(cell: Cell) -> str:
    """Why; empty if it can."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()
    if cell.variant != CPU_ADAM or any(Path(root).glob("**/cpu_adam.so")):
        return ""
    return (
        "DeepSpeedCPUAdam is not built, which takes a compiler and about a minute: do so with "
        "DS_ACCELERATOR=cpu python -c 'from deepspeed.ops.op_builder import CPUAdamBuilder; "
        "CPUAdamBuilder().load()'"
    )


class DeepSpeed:
    """The engine is passed to the freeze alone: it has the optimizer."""

    optimizer = None

    def __init__(self, cell: Cell, module: TinyLM, folder: Path) -> None:
        deepspeed.init_distributed("gloo")
        self.cell = cell
        self.folder = folder
        config = configuration(cell)
        if cell.variant == ZERO_INIT:
            module = _partitioned(module, config)
        self.module = module
        self.names = [name for name, _ in module.named_parameters()]
        name = CPU_ADAM if cell.variant == CPU_ADAM else cell.optimizer
        trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.model, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer_of(name, trainable), config=config
        )
        self.norms: list[float] = []
        if cell.engine == STAGE_0:
            _record_norm(self.norms)

    def step(self, batches: list[Tensor]) -> tuple[float, bool]:
        """The gradient's norm before clipping, and whether loss scaling skipped the step."""
        before = self.model.skipped_steps
        for input_ids in batches:
            mine = own_rows(input_ids, self.cell, dist.get_rank())
            self.model.backward(loss_of(self.model(mine).float(), mine))
            self.model.step()
        norm = self.model.get_global_grad_norm()
        if norm is None:  # stage 0 takes it and tells nobody
            norm = self.norms[-1] if self.norms else float("nan")
        return float(norm), self.model.skipped_steps > before

    def masters(self) -> dict[str, Tensor]:
        if self.cell.engine == STAGE_0:
            return {name: value.detach() for name, value in self.module.named_parameters()}
        found = {}
        for name, parameter in self.module.named_parameters():
            value = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
            found[name] = self._gathered(parameter) if value is None else value
        return found

    def _gathered(self, parameter: torch.nn.Parameter) -> Tensor:
        """One that is not trained, which has no master."""
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    def checkpoint(self) -> dict[str, Tensor]:
        self.model.save_checkpoint(str(self.folder), tag="end")
        if self.cell.engine == STAGE_0:
            return self._weights_on_disk()
        if self.cell.engine == BF16_OPTIMIZER:  # zero_to_fp32 does not know its files
            found = self._partitions_on_disk()
        else:
            found = get_fp32_state_dict_from_zero_checkpoint(str(self.folder), tag="end")
        # At stage 1 both leave out what was not trained.
        return self._weights_on_disk() | dict(found)

    def _weights_on_disk(self) -> dict[str, Tensor]:
        """Those of the forward pass; ZeRO-3 has none there."""
        file = self.folder / "end" / "mp_rank_00_model_states.pt"
        return torch.load(file, weights_only=False)["module"] if file.exists() else {}

    def _partitions_on_disk(self) -> dict[str, Tensor]:
        """The fp32 values in the ranks' files, put together as DeepSpeed's own slices say."""
        parts: dict[str, list[Tensor]] = {}
        for rank in range(self.cell.world):
            file = self.folder / "end" / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
            state = torch.load(file, weights_only=False)["optimizer_state_dict"]
            flat = state[SINGLE_PARTITION_OF_FP32_GROUPS]
            for group, slices in enumerate(state[PARAM_SLICE_MAPPINGS]):
                for name, where in slices.items():
                    parts.setdefault(name, []).append(
                        flat[group].narrow(0, where.start, where.numel)
                    )
        shapes = {name: value.shape for name, value in self.module.named_parameters()}
        return {name: torch.cat(found).view(shapes[name]) for name, found in parts.items()}

    def export(self) -> dict[str, Tensor]:
        self.model.save_16bit_model(str(self.folder), "export.bin")
        dist.barrier()
        return torch.load(self.folder / "export.bin", weights_only=True)

    def close(self) -> None:
        self.model.destroy()


def _record_norm(norms: list[float]) -> None:
    """Note what DeepSpeed's stage 0 clips by."""
    import deepspeed.runtime.engine as engine

    clip = engine.clip_grad_norm_

    def noting(*args: Any, **kwargs: Any) -> Any:
        norm = clip(*args, **kwargs)
        norms.append(float(norm))
        return norm

    engine.clip_grad_norm_ = noting


def _partitioned(start: TinyLM, config: dict[str, Any]) -> TinyLM:
    """The same weights in a model whose parameters ZeRO-3 splits as they are made."""

    class Partitioned(TinyLM):
        def double(self) -> "Partitioned":
            return self

    # Without dtype: given one, it takes bf16 where fp16 is not supported, whatever was given.
    with deepspeed.zero.Init(config_dict_or_path=config):
        model = Partitioned()
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(start.get_parameter(name).data)
    return model
