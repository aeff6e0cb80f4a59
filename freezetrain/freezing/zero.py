"""DeepSpeed: where ZeRO keeps a region's fp32 masters. The one file that imports deepspeed."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn
from torch.optim import Optimizer

from freezetrain.errors import UserError, near_misses
from freezetrain.freezing.layout import Layout, Shard
from freezetrain.regions import Resolved

_KNOWN = (BF16_Optimizer, DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3)

# Attributes of the wrapper that say so.
_FEATURES = {
    "mpu": "model parallelism (mpu)",
    "has_moe_layers": "expert parallelism (MoE layers)",
    "swap_optimizer": "offload_optimizer to NVMe",
    "params_in_nvme_and_cpu": "offload_param to NVMe",
    # _hp_mapping, and with it safe_get_full_fp32_param, does not follow the reordering.
    "round_robin_gradients": (
        "round_robin_gradients, which shards parameters elsewhere than it says"
    ),
    "zenflow": "ZenFlow",
}

_INSTEAD = "use ZeRO stage 1, 2 or 3, with or without offload_optimizer to the CPU"


def zero(wrapper: Any, inner: Sequence[Optimizer], resolved: Sequence[Resolved]) -> Layout:
    """A model under ``wrapper``, the optimizer that ``deepspeed.initialize`` made.

    Each rank guards and audits the part of the region that lies in its own fp32 partition.
    Gradients are masked where DeepSpeed first sees them, whole and not reduced yet, so every rank
    also keeps the region's entries (as :meth:`~freezetrain.regions.Entries.for_training`): with
    an offloaded optimizer DeepSpeed takes the norm while it reduces, so that masking shards
    afterwards would be too late.

    UserError for what DeepSpeed offers beyond that and the coordinates here do not cover.
    """
    _refuse(wrapper, inner)
    if type(wrapper) is DeepSpeedZeroOptimizer_Stage3:
        return _stage_3(wrapper, inner, resolved)
    whole = [Shard.whole(frozen, number) for number, frozen in enumerate(resolved)]
    masters = _fragments(wrapper, resolved)
    held = {id(p) for group in _groups(wrapper) for p in group}
    if not dist.get_rank():  # what is not trained has no master: its weights count, once
        masters += [shard for shard in whole if id(shard.owner) not in held]
    stage = 1 if isinstance(wrapper, BF16_Optimizer) or not wrapper.partition_gradients else 2
    return Layout(
        engine=f"DeepSpeed ZeRO-{stage} ({type(wrapper).__name__})",
        optimizers=inner,
        inner=inner,
        gradients=whole,
        masters=masters,
        copies=whole,
        distributed=dist.get_world_size() > 1,
        sharded=True,
        piecewise=True,
    )


def _groups(wrapper: Any) -> list[list[nn.Parameter]]:
    for name in ("bit16_groups", "bf16_groups", "fp16_groups"):
        if hasattr(wrapper, name):
            groups: list[list[nn.Parameter]] = getattr(wrapper, name)
            return groups
    raise AssertionError(type(wrapper))


def _fragments(wrapper: Any, resolved: Sequence[Resolved]) -> list[Shard]:
    """ZeRO-1, ZeRO-2 and BF16_Optimizer: a contiguous slice of all parameters of a group."""
    flat = (
        wrapper.fp32_groups_flat_partition
        if isinstance(wrapper, BF16_Optimizer)
        else wrapper.single_partition_of_fp32_groups
    )
    shards = []
    for number, frozen in enumerate(resolved):
        mapping = getattr(frozen.parameter, "_hp_mapping", None)
        if mapping is not None:  # else another rank's, or not trained
            here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
            owner = flat[mapping.param_group_index]
            part = Shard.part(frozen, number, owner, here.start, (here.numel,), there.start)
            shards.append(part)
    return shards


def _stage_3(wrapper: Any, inner: Sequence[Optimizer], resolved: Sequence[Resolved]) -> Layout:
    masters, copies = [], []
    held = {id(p) for group in _groups(wrapper) for p in group}
    for number, frozen in enumerate(resolved):
        parameter: Any = frozen.parameter
        size = parameter.ds_tensor.ds_numel
        first = min(size * dist.get_rank(parameter.ds_process_group), parameter.ds_numel)
        length = min(size, parameter.ds_numel - first)  # the last ranks' shards end in padding
        copy = Shard.part(frozen, number, parameter.ds_tensor, first, (length,), 0)
        copies.append(copy)
        if id(parameter) not in held:  # not trained
            masters.append(copy)
            continue
        group, start, _ = wrapper.grad_position[wrapper.get_param_id(parameter)]
        owner = wrapper.fp32_partitioned_groups_flat[group]
        masters.append(copy.held_by(owner, start))  # so that its entries are held once

    return Layout(
        engine="DeepSpeed ZeRO-3",
        optimizers=inner,
        inner=inner,
        gradients=[Shard.whole(frozen, number) for number, frozen in enumerate(resolved)],
        masters=masters,
        copies=copies,
        distributed=dist.get_world_size() > 1,
        sharded=True,
        piecewise=True,
        full=gathered,
    )


def gathering(model: nn.Module, config: dict[str, Any]) -> Any:
    """Have a model that ZeRO-3 has partitioned gather each weight as it is used, without training.

    What is returned must be kept as long as the model is used.
    """
    return deepspeed.initialize(model=model, config=config)[0]


def gathered(parameter: nn.Parameter) -> Tensor:
    """A copy of a whole parameter that ZeRO-3 has partitioned; every rank calls this.

    Afterwards it is partitioned, also if it is one that stays gathered.
    """
    with GatheredParameters([parameter]):
        return parameter.detach().clone()


def master(parameter: nn.Parameter) -> Tensor | None:
    """The whole fp32 master of a 16-bit parameter, None where it has none; every rank calls this.

    Summed from the ranks' parts by DeepSpeed, in which a zero loses its sign: it gets that of the
    16-bit copy back, gathered where ZeRO-3 has partitioned it.
    """
    partitioned = hasattr(parameter, "ds_id")
    if not hasattr(parameter, "_z3_optimizer" if partitioned else "_hp_mapping"):
        return None
    copy = gathered(parameter) if partitioned else parameter.detach()
    full = safe_get_full_fp32_param(parameter)
    return None if full is None else torch.where(full == 0, copy.to(full), full)


def to_universal(checkpoint: Path, universal: Path) -> None:
    """Write what is in a checkpoint's tag folder so that any number of ranks can load it.

    Beside ``universal`` DeepSpeed leaves ``latest_universal``, which names it.
    """
    arguments = Namespace(
        input_folder=str(checkpoint),
        output_folder=str(universal),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,  # ZeRO-1 and 2: it wants what Megatron would have saved
    )
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # it prints and draws bars
        ds_to_universal.main(arguments)


class _Asked(dict[str, Any]):
    """A configuration that notes the names that it is asked for."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        super().__init__(entries)
        self.names: set[str] = set()

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return super().__contains__(name)

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return super().__getitem__(name)

    def keys(self) -> Any:  # which are asked too whether they hold a name
        return self

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


def check_settings(config: Mapping[str, Any]) -> None:
    """UserError for entries of a configuration, and of its zero_optimization, unknown to DeepSpeed.

    It passes over names in a configuration that it does not know, and has no list of those that it
    does: they are those that it asks for.
    """
    asked = _Asked({"train_micro_batch_size_per_gpu": 1})
    DeepSpeedConfig(asked)
    for name in config:
        if name not in asked.names:
            raise UserError(
                f"engine.deepspeed has {name!r}, which DeepSpeed does not know"
                f"{near_misses(name, asked.names)}; correct it, or leave it out"
            )
    try:
        DeepSpeedZeroConfig(**config["zero_optimization"])
    except ValueError as error:  # pydantic's, of several lines
        said = [line.strip() for line in str(error).splitlines()]
        raise UserError(
            f"DeepSpeed refuses engine.deepspeed.zero_optimization: {': '.join(said[1:3])}"
        ) from error


def _refuse(wrapper: Any, inner: Sequence[Optimizer]) -> None:
    group = getattr(wrapper, "dp_process_group", None)
    offload = getattr(wrapper, "parameter_offload", None)
    if type(wrapper).__name__ in ("FP16_Optimizer", "FP16_UnfusedOptimizer"):
        # Their initialize_optimizer_states steps with zero gradients, which decays the masters.
        unsupported = ["stage 0 in 16 bits, where weight decay moves the fp32 masters as it starts"]
    elif type(wrapper) not in _KNOWN:
        unsupported = [type(wrapper).__name__]
    else:
        unsupported = [what for name, what in _FEATURES.items() if getattr(wrapper, name, None)]
        if getattr(wrapper, "zero_hpz_partition_size", 1) > 1:
            unsupported.append("zero_hpz_partition_size above 1")
        if getattr(offload, "zero_quantized_weights", False):
            unsupported.append("zero_quantized_weights")
        groups = [settings for optimizer in inner for settings in optimizer.param_groups]
        if any(settings.get("use_muon") for settings in groups):
            unsupported.append(
                "its Muon, which orthogonalizes gradients before their norm is taken"
            )
        if group is not None and dist.get_world_size(group) != dist.get_world_size():
            unsupported.append("data parallelism over a part of the ranks")
    if unsupported:
        features = " and ".join(unsupported)
        raise UserError(f"cannot freeze under DeepSpeed with {features}: {_INSTEAD}")
