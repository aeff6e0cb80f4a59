"""Which engine trains the model, and what a freeze cannot be guaranteed under, refused by name."""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from freezetrain.errors import UserError
from freezetrain.freezing.fsdp import fsdp
from freezetrain.freezing.layout import Layout, plain
from freezetrain.freezing.optimizers import given, hooked, refuse_parameters, take_apart
from freezetrain.regions import Resolved

# By class name, so that an engine that is not installed need not be imported.
_MODELS = {
    "FullyShardedDataParallel": "it flattens parameters anew at every step (use FSDP2)",
    "PipelineEngine": "it splits the model's layers over ranks",
}

_PARAMETERS = {"FlatParameter": "it flattens parameters anew at every step (use FSDP2)"}

# Each maps zeros to zeros, entry by entry. Low-rank and quantizing ones do not.
_COMMUNICATION_HOOKS = ("allreduce_hook", "fp16_compress_hook", "bf16_compress_hook")

_HOOK_MODULES = "torch.distributed.algorithms.ddp_comm_hooks."

_ONE_OF_DEEPSPEED = (
    "cannot freeze under DeepSpeed with several optimizers: an engine steps one; give it one "
    "optimizer with several parameter groups, or train under DistributedDataParallel or FSDP2"
)

_ENGINE = "train on one device, or under DistributedDataParallel, FSDP2 or DeepSpeed ZeRO"


def lay_out(
    model: nn.Module, optimizer: Any, resolved: Sequence[Resolved], replicated: bool | None
) -> Layout:
    """Find the engine that trains ``model`` and where it keeps the region on this rank.

    ``optimizer``: one or a sequence of several; None for a DeepSpeed engine, which has it.
    ``replicated``: the ranks of the default process group train copies of the model together; None
    looks for a DistributedDataParallel or DeepSpeed engine in ``model``, and among several
    processes wants one. UserError for what is not supported.
    """
    engine: Any = next((m for m in model.modules() if _is_a(m, "DeepSpeedEngine")), None)
    optimizers = given(optimizer)
    if engine is not None and len(optimizers) > 1:
        raise UserError(_ONE_OF_DEEPSPEED)
    optimizers = given(getattr(engine, "optimizer", None)) or optimizers
    if not optimizers:
        raise UserError(
            "expected an optimizer: it may be left out for a DeepSpeed engine that has one"
        )
    parts = take_apart(optimizers)
    wrapper = next((o for o in parts.links if _of_deepspeed(o)), None)
    if len(parts.inner) > 1 and (engine is not None or wrapper is not None):
        raise UserError(_ONE_OF_DEEPSPEED)
    if wrapper is not None:
        from freezetrain.freezing.zero import zero

        inner = hooked(parts.links[parts.links.index(wrapper) + 1 :])[-1:]
        backup = getattr(wrapper, "backup_optimizer", None)  # of a partly offloaded ZeRO-3
        return zero(wrapper, inner if backup is None else [*inner, backup], resolved)
    for frozen in resolved:
        if hasattr(frozen.parameter, "ds_id"):
            raise UserError(
                f"{frozen.name} is partitioned by ZeRO-3, and the optimizer "
                f"({type(parts.inner[-1]).__name__}) is not DeepSpeed's: pass the engine with its "
                "own"
            )
    refuse_parameters(parts, resolved, model)
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return fsdp(parts, resolved)
    ddp = next((m for m in model.modules() if isinstance(m, DistributedDataParallel)), None)
    group = getattr(ddp, "process_group", None)
    if replicated is None:
        replicated = engine is not None or ddp is not None
        if not replicated and dist.is_initialized() and dist.get_world_size() > 1:
            raise UserError(
                f"{dist.get_world_size()} processes run and the model is under no engine: pass the "
                "DistributedDataParallel module, or say replicated=True (they train copies of it "
                "together) or False (each trains its own)"
            )
    together = replicated and dist.is_initialized() and dist.get_world_size(group) > 1
    name = "DeepSpeed stage 0" if engine is not None else "DDP" if together else "one device"
    return plain(name, parts, resolved, together, group)


def refuse_unsupported(model: nn.Module, masked: bool = True) -> None:
    """UserError if ``model`` is, or holds, something under which a freeze is not guaranteed.

    ``masked``: gradients are, which must survive their reduction; a pull does not touch them.

    Pass the outermost module, with DistributedDataParallel if there is one: its communication
    hooks are looked at too.
    """
    for module in model.modules():
        _refuse(module, _MODELS, _ENGINE)
        if isinstance(module, DistributedDataParallel):
            if masked:
                _refuse_communication(module)
            if getattr(getattr(module, "_join_config", None), "enable", False):
                raise UserError(
                    "cannot audit within DistributedDataParallel.join, where ranks that are out of "
                    "data do not take part: give all ranks as many batches, or audit_every=0"
                )
    for parameter in model.parameters():
        _refuse(parameter, _PARAMETERS, _ENGINE)


def _refuse_communication(module: DistributedDataParallel) -> None:
    for hook, _ in module._comm_hooks:
        name = getattr(hook, "__qualname__", type(hook).__qualname__)
        known = str(getattr(hook, "__module__", "")).startswith(_HOOK_MODULES)
        if not known or name not in _COMMUNICATION_HOOKS:
            raise UserError(
                f"cannot freeze with the DDP communication hook {name}: it need not keep zero "
                f"gradients zero; use one of {', '.join(_COMMUNICATION_HOOKS)}"
            )


def _of_deepspeed(optimizer: object) -> bool:
    """Whether it is what DeepSpeed wraps around an optimizer."""
    return type(optimizer).__module__.startswith("deepspeed.runtime")


def _is_a(thing: object, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(thing).__mro__)


def _refuse(thing: object, reasons: dict[str, str], instead: str) -> None:
    for kind in type(thing).__mro__:
        for refused, reason in reasons.items():
            if refused in kind.__name__:
                raise UserError(f"cannot freeze under {kind.__name__}: {reason}; {instead}")
