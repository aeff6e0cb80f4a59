"""Which trainers a freeze can be guaranteed under. Every other is refused by name."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from freezetrain.errors import UserError
from freezetrain.regions import Resolved

# By class name, so that an engine that is not installed need not be imported.
_SHARDED = "it splits parameters over ranks, where a region cannot follow yet"
_MODELS = {
    "DeepSpeedEngine": _SHARDED,
    "FullyShardedDataParallel": _SHARDED,
    "FSDPModule": _SHARDED,
}
_PARAMETERS = {"DTensor": _SHARDED, "FlatParameter": _SHARDED}
_OPTIMIZERS = {
    "ZeroRedundancyOptimizer": "it splits the optimizer over ranks and sends parameters back",
    "PostLocalSGDOptimizer": "it averages parameters over ranks outside the step",
    "ASGD": "it keeps an average of the parameters, decayed at frozen entries too",
    "ScheduleFree": "it swaps parameters with a copy of its own outside the step",
}
# Each maps zeros to zeros, entry by entry. Low-rank and quantizing ones do not.
_COMMUNICATION_HOOKS = ("allreduce_hook", "fp16_compress_hook", "bf16_compress_hook")
_HOOK_MODULES = "torch.distributed.algorithms.ddp_comm_hooks."

_ENGINE = "train on one device or under DistributedDataParallel"
_OPTIMIZER = "use an optimizer that changes weights in its step alone, such as AdamW"


def torch_optimizers(optimizer: Any) -> list[Optimizer]:
    """The optimizers whose steps can move weights, outermost first; the last one holds them.

    Lightning, Fabric and Accelerate keep the inner one as ``.optimizer``, as do optimizers around
    others. UserError for one on the way that cannot be guarded, or if the innermost is no
    torch.optim.Optimizer.
    """
    found = [optimizer]
    while (inner := getattr(found[-1], "optimizer", None)) is not None:
        found.append(inner)
    for one in found:
        _refuse(one, _OPTIMIZERS, _OPTIMIZER)
    if not isinstance(found[-1], Optimizer):
        raise UserError(
            f"expected a torch.optim.Optimizer, got {type(found[-1]).__name__}, which has no step "
            "hooks to guard frozen entries with"
        )
    # A trainer's wrapper that skipped Optimizer.__init__ has no hooks and no step of its own.
    return [one for one in found if hasattr(one, "_optimizer_step_pre_hooks")]


def refuse_unsupported(model: nn.Module) -> None:
    """UserError if ``model`` is, or holds, something under which a freeze is not guaranteed.

    Pass the outermost module, with DistributedDataParallel if there is one: its communication
    hooks are looked at too.
    """
    for module in model.modules():
        _refuse(module, _MODELS, _ENGINE)
        if isinstance(module, DistributedDataParallel):
            _refuse_communication(module)
    for parameter in model.parameters():
        _refuse(parameter, _PARAMETERS, _ENGINE)
        if hasattr(parameter, "ds_id"):  # the mark of ZeRO-3 on an else plain Parameter
            raise UserError(f"cannot freeze under DeepSpeed: {_SHARDED}; {_ENGINE}")


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


def _refuse(thing: object, reasons: dict[str, str], instead: str) -> None:
    for kind in type(thing).__mro__:
        for refused, reason in reasons.items():
            if refused in kind.__name__:
                raise UserError(f"cannot freeze under {kind.__name__}: {reason}; {instead}")
