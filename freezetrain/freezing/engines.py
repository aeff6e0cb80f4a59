"""Which engine trains the model, and what a freeze cannot be guaranteed under, refused by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from freezetrain.errors import UserError
from freezetrain.freezing.fsdp import fsdp
from freezetrain.freezing.layout import Layout, plain
from freezetrain.regions import Resolved

# By class name, so that an engine that is not installed need not be imported.
_MODELS = {
    "FullyShardedDataParallel": "it flattens parameters anew at every step (use FSDP2)",
    "PipelineEngine": "it splits the model's layers over ranks",
}

_PARAMETERS = {"FlatParameter": "it flattens parameters anew at every step (use FSDP2)"}

_OPTIMIZERS = {
    "ZeroRedundancyOptimizer": "it splits the optimizer over ranks and sends parameters back",
    "PostLocalSGDOptimizer": "it averages parameters over ranks outside the step",
    "ASGD": "it keeps an average of the parameters, decayed at frozen entries too",
    "ScheduleFree": "it swaps parameters with a copy of its own outside the step",
    "Lomo": "it steps inside backward",
    "MuonWithAuxAdam": "DeepSpeed mixes the entries of a gradient before it takes the norm",
    "Onebit": "it sends compressed momentum, in which no entry stays zero",
    "ZeroOneAdam": "it sends compressed momentum, in which no entry stays zero",
}

# Each maps zeros to zeros, entry by entry. Low-rank and quantizing ones do not.
_COMMUNICATION_HOOKS = ("allreduce_hook", "fp16_compress_hook", "bf16_compress_hook")

_HOOK_MODULES = "torch.distributed.algorithms.ddp_comm_hooks."

_ENGINE = "train on one device, or under DistributedDataParallel, FSDP2 or DeepSpeed ZeRO"

_OPTIMIZER = "use an optimizer that changes weights in its step alone, such as AdamW"


def lay_out(
    model: nn.Module, optimizer: Any, resolved: Sequence[Resolved], replicated: bool | None
) -> Layout:
    """Find the engine that trains ``model`` and where it keeps the region on this rank.

    ``optimizer`` may be None for a DeepSpeed engine, which has it. ``replicated``: the ranks of
    the default process group train copies of the model together; None looks for a
    DistributedDataParallel or DeepSpeed engine in ``model``, and among several processes wants
    one. UserError for what is not supported.
    """
    engine: Any = next((m for m in model.modules() if _is_a(m, "DeepSpeedEngine")), None)
    optimizer = getattr(engine, "optimizer", None) or optimizer
    if optimizer is None:
        raise UserError(
            "expected an optimizer: it may be left out for a DeepSpeed engine that has one"
        )
    chain = _chain(optimizer)
    wrapper = next((o for o in chain if type(o).__module__.startswith("deepspeed.runtime")), None)
    if wrapper is not None:
        from freezetrain.freezing.zero import zero

        inner = _hooked(chain[chain.index(wrapper) + 1 :])[-1:]
        backup = getattr(wrapper, "backup_optimizer", None)  # of a partly offloaded ZeRO-3
        return zero(wrapper, inner if backup is None else [*inner, backup], resolved)
    for frozen in resolved:
        if hasattr(frozen.parameter, "ds_id"):
            raise UserError(
                f"{frozen.name} is partitioned by ZeRO-3, and the optimizer "
                f"({type(chain[-1]).__name__}) is not DeepSpeed's: pass the engine with its own"
            )
    optimizers = _hooked(chain)
    refuse_parameters(optimizers[-1], resolved)
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return fsdp(optimizers, resolved)
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
    return plain(name, optimizers, resolved, together, group)


def _chain(optimizer: Any) -> list[Any]:
    """``optimizer`` and those within it, outermost first; UserError for one that is refused.

    Lightning, Fabric, Accelerate and DeepSpeed keep the inner one as ``.optimizer``, as do
    optimizers around others; SAM as ``.base_optimizer``.
    """
    chain = [optimizer]
    while (inner := _within(chain[-1])) is not None:
        chain.append(inner)
    for link in chain:
        _refuse(link, _OPTIMIZERS, _OPTIMIZER)
    if not isinstance(chain[-1], Optimizer):
        raise UserError(
            f"expected a torch.optim.Optimizer, got {type(chain[-1]).__name__}, which has no step "
            "hooks to guard frozen entries with"
        )
    if chain[-1] not in _hooked(chain) or not getattr(type(chain[-1]).step, "hooked", False):
        raise UserError(
            f"cannot freeze under {type(chain[-1]).__name__}: its step does not run step hooks, so "
            "that frozen entries cannot be put back; have it call torch.optim.Optimizer.__init__, "
            f"or {_OPTIMIZER}"
        )
    return chain


def _within(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", None) or getattr(optimizer, "base_optimizer", None)


def _hooked(chain: Sequence[Any]) -> list[Optimizer]:
    """Those with step hooks of their own.

    A trainer's wrapper has none, or holds those of the optimizer within it, as Fabric's does.
    """
    by_hooks = {
        id(optimizer._optimizer_step_pre_hooks): optimizer
        for optimizer in chain
        if hasattr(optimizer, "_optimizer_step_pre_hooks")
    }
    return list(by_hooks.values())


def refuse_unsupported(model: nn.Module) -> None:
    """UserError if ``model`` is, or holds, something under which a freeze is not guaranteed.

    Pass the outermost module, with DistributedDataParallel if there is one: its communication
    hooks are looked at too.
    """
    for module in model.modules():
        _refuse(module, _MODELS, _ENGINE)
        if isinstance(module, DistributedDataParallel):
            _refuse_communication(module)
            if getattr(getattr(module, "_join_config", None), "enable", False):
                raise UserError(
                    "cannot audit within DistributedDataParallel.join, where ranks that are out of "
                    "data do not take part: give all ranks as many batches, or audit_every=0"
                )
    for parameter in model.parameters():
        _refuse(parameter, _PARAMETERS, _ENGINE)


def refuse_parameters(optimizer: Optimizer, resolved: Sequence[Resolved]) -> None:
    """UserError if a parameter with frozen entries is updated by something else than the step."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if resolved and not any(id(frozen.parameter) in held for frozen in resolved):
        raise UserError(
            f"the optimizer ({type(optimizer).__name__}) holds none of the region's parameters, "
            f"first {resolved[0].name}: pass the model that it trains"
        )
    for frozen in resolved:
        if frozen.parameter.requires_grad and id(frozen.parameter) not in held:
            raise UserError(
                f"{frozen.name} has frozen entries and requires a gradient, but is not in the "
                f"optimizer ({type(optimizer).__name__}): pass the optimizer that holds it, or "
                "set its requires_grad to False"
            )
        if getattr(frozen.parameter, "_in_backward_optimizers", None):
            raise UserError(
                f"{frozen.name} has frozen entries and an optimizer that steps in backward, which "
                "cannot be guarded: give it to the optimizer alone"
            )


def _refuse_communication(module: DistributedDataParallel) -> None:
    for hook, _ in module._comm_hooks:
        name = getattr(hook, "__qualname__", type(hook).__qualname__)
        known = str(getattr(hook, "__module__", "")).startswith(_HOOK_MODULES)
        if not known or name not in _COMMUNICATION_HOOKS:
            raise UserError(
                f"cannot freeze with the DDP communication hook {name}: it need not keep zero "
                f"gradients zero; use one of {', '.join(_COMMUNICATION_HOOKS)}"
            )


def own_master(owner: Tensor, state: Mapping[str, Any]) -> str | None:
    """The key under which an optimizer's ``state`` of ``owner`` holds a master of its own.

    That is, a tensor of a wider dtype most of whose values round to the weights; looked at in up
    to 1024 places. apex and Transformer Engine keep such ones.
    """
    stride = max(1, owner.numel() // 1024)
    for key, value in state.items():
        if (
            isinstance(value, Tensor)
            and value.shape == owner.shape
            and value.is_floating_point()
            and value.element_size() > owner.element_size()
            and not isinstance(value, DTensor)
        ):
            weights = owner.detach().flatten()[::stride]
            same = value.flatten()[::stride].to(weights.dtype) == weights
            if 2 * int((same & (weights != 0)).count_nonzero()) > int(weights.count_nonzero()):
                return key
    return None


def _is_a(thing: object, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(thing).__mro__)


def _refuse(thing: object, reasons: dict[str, str], instead: str) -> None:
    for kind in type(thing).__mro__:
        for refused, reason in reasons.items():
            if refused in kind.__name__:
                raise UserError(f"cannot freeze under {kind.__name__}: {reason}; {instead}")
