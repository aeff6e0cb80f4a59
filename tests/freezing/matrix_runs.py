"""The runs of the engine matrix, and what a freeze refuses; only ranks import this."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from frozen_reference import TinyLM, mixed_region, steps_of_batches
from matrix_cells import (
    DDP,
    FSDP2,
    HSDP,
    PLAIN,
    STORED_BASE,
    Cell,
    Outcome,
    base_of_pull,
    not_trained,
    optimizer_of,
    pull_of,
    pulled_to_start,
    region_of,
    start,
)
from matrix_engines import DeepSpeed, Plain, Sharded, cannot_run, configuration
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel

from freezetrain.errors import CheckError, UserError
from freezetrain.freezing import Freeze, Pull, freeze, pull


def run_all(rank: int, world: int, folders: dict[Cell, Path]) -> list[Outcome | str]:
    """One cell after another, each in its folder."""
    return [run(rank, world, cell, folder) for cell, folder in folders.items()]


def run(rank: int, world: int, cell: Cell, folder: Path) -> Outcome | str:
    """Train; this rank's view of it. Why this machine cannot run it, if it cannot."""
    if reason := cannot_run(cell):
        return reason
    module = start(cell)
    for name in not_trained(cell):
        module.get_parameter(name).requires_grad_(False)
    stored = {name: value.detach().clone() for name, value in module.named_parameters()}
    trained = _engine(cell)(cell, module, folder)
    handle = held = None
    if cell.freezes:
        base = stored if cell.variant == STORED_BASE else None
        handle = freeze(
            trained.model,
            trained.optimizer,
            region_of(cell),
            base=base,
            audit_every=2,
            replicated=False if cell.engine == PLAIN else None,
        )
    if cell.pulls:
        held = _pull(cell, trained, folder / f"base of {rank}")
    norms, skipped = [], []
    for number, batches in enumerate(steps_of_batches(cell.steps, rows=cell.rows)):
        norm, skip = trained.step(batches)
        norms.append(norm)
        if skip:
            skipped.append(number)
    facts: dict[str, Any] = {"norms": norms, "skipped": skipped}
    if handle is not None:
        facts |= {"verified": handle.verify(), "count": handle.count}
        facts |= {"digest": handle.digest, "engine": handle.engine}
    if held is not None:
        facts |= {"distances": held.distances(), "engine": held.engine}
    tensors = {
        "master": trained.masters(),
        "checkpoint": trained.checkpoint(),
        "export": trained.export(),
        "forward": seen_in_forward(trained.model),
    }
    if handle is not None:
        facts["after_evaluation"] = _complaint(handle)
        handle.remove()
    trained.close()
    weights = {
        kind: {name: values[name].detach().clone() for name in stored}
        for kind, values in tensors.items()
        if values  # gathered on rank 0 alone
    }
    return Outcome(facts, weights)


def _pull(cell: Cell, trained: Any, folder: Path) -> Pull:
    """To a base in its folder, or to what the weights are."""
    strength, options = pull_of(cell)
    if not pulled_to_start(cell):
        folder.mkdir()
        save_file(base_of_pull(cell), folder / "model.safetensors")
        options["base"] = folder
    options["replicated"] = False if cell.engine == PLAIN else None
    return pull(trained.model, trained.optimizer, strength, **options)


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


def refusals(rank: int, world: int) -> dict[str, str]:
    """What was tried -> the error's message, or what else came of it. In a process group of 2."""
    return {name: _message(build) for name, build in REFUSED.items()}


def _message(build: Callable[[TinyLM], tuple[nn.Module, Any]]) -> str:
    module = TinyLM().float()
    region = mixed_region(module)
    try:
        model, optimizer = build(module)
        freeze(model, optimizer, region)
    except (UserError, CheckError) as error:
        return str(error)
    except Exception:
        return traceback.format_exc()
    return "not refused"


def _adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters())


def _fsdp_1(module: TinyLM) -> tuple[nn.Module, Any]:
    model = FullyShardedDataParallel(module, device_id=torch.device("cpu"))
    return model, _adamw(model)


def _columns(module: TinyLM) -> tuple[nn.Module, Any]:
    fully_shard(module, shard_placement_fn=lambda parameter: Shard(parameter.ndim - 1))
    return module, _adamw(module)


def _redundancy(module: TinyLM) -> tuple[nn.Module, Any]:
    optimizer = ZeroRedundancyOptimizer(module.parameters(), torch.optim.AdamW)
    return DistributedDataParallel(module), optimizer


def _power_sgd(module: TinyLM) -> tuple[nn.Module, Any]:
    model = DistributedDataParallel(module)
    model.register_comm_hook(powerSGD_hook.PowerSGDState(None), powerSGD_hook.powerSGD_hook)
    return model, _adamw(model)


def _deepspeed(stage: int, precision: str, **changes: Any) -> Callable:
    def build(module: TinyLM) -> tuple[nn.Module, Any]:
        config = configuration(Cell(f"ZeRO-{stage}", precision))
        config["zero_optimization"] |= changes
        optimizer = optimizer_of("AdamW", dict(module.named_parameters()))
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
        return engine, None

    return build


REFUSED = {
    "FSDP1 (FullyShardedDataParallel)": _fsdp_1,
    "FSDP2 with shard_placement_fn": _columns,
    "DDP with a PowerSGD hook": _power_sgd,
    "ZeroRedundancyOptimizer": _redundancy,
    "DeepSpeed stage 0 in bf16": _deepspeed(0, "bf16"),
    "DeepSpeed stage 0 in fp16": _deepspeed(0, "fp16"),
    "ZeRO-2 with round_robin_gradients": _deepspeed(2, "fp32", round_robin_gradients=True),
}
