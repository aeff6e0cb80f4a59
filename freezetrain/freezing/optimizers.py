"""Optimizers that a freeze guards: their types, those within others, and those that are refused."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from freezetrain.errors import UserError
from freezetrain.regions import Resolved


class HookedOptimizer(Protocol):
    """What a freeze uses of an optimizer; every ``torch.optim.Optimizer`` has it.

    Its ``step`` must run the hooks, which is looked at as the freeze begins: PyTorch sees to it
    for classes whose ``__init__`` calls that of ``torch.optim.Optimizer``.
    """

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Mappings, each with the tensors that it steps under ``params``."""

    @property
    def state(self) -> Mapping[Any, Any]:
        """Tensor -> what is kept for it, in which a copy in higher precision is looked for."""

    def register_step_pre_hook(self, hook: Callable[..., Any], /) -> RemovableHandle:
        """``hook(optimizer, args, kwargs)`` runs before each step, where values are taken."""

    def register_step_post_hook(self, hook: Callable[..., Any], /) -> RemovableHandle:
        """``hook(optimizer, args, kwargs)`` runs after each step, where they are put back."""


class WrappedOptimizer(Protocol):
    """Around another: what Accelerate, Fabric, Lightning and DeepSpeed make of an optimizer."""

    @property
    def optimizer(self) -> Any:
        """The one within."""


class ChainedOptimizers(Protocol):
    """Around several, which its step steps one after the other."""

    @property
    def optimizers(self) -> Any:
        """Those within: a sequence, or a mapping from names to them."""


OptimizerLike = HookedOptimizer | WrappedOptimizer | ChainedOptimizers

# By class name, so that a package that is not installed need not be imported.
_REFUSED = {
    "ZeroRedundancyOptimizer": "it splits the optimizer over ranks and sends parameters back",
    "PostLocalSGDOptimizer": "it averages parameters over ranks outside the step",
    "ASGD": "it keeps an average of the parameters, decayed at frozen entries too",
    "ScheduleFree": "it swaps parameters with a copy of its own outside the step",
    "Lomo": "it steps inside backward",
    "MuonWithAuxAdam": "DeepSpeed mixes the entries of a gradient before it takes the norm",
    "Onebit": "it sends compressed momentum, in which no entry stays zero",
    "ZeroOneAdam": "it sends compressed momentum, in which no entry stays zero",
}

_INSTEAD = "use an optimizer that changes weights in its step alone, such as AdamW"


@dataclass(frozen=True)
class Optimizers:
    """What was given to a freeze, taken apart."""

    links: Sequence[Any]
    """All of them, each before those within it."""
    inner: Sequence[Optimizer]
    """Those within which there is no other: they hold the tensors."""

    @property
    def hooked(self) -> list[Optimizer]:
        """Those of ``links`` with step hooks of their own."""
        return hooked(self.links)

    def described(self) -> str:
        """For messages: "optimizer (AdamW)" or "optimizers (Muon and AdamW)"."""
        names = " and ".join(type(optimizer).__name__ for optimizer in self.inner)
        return f"optimizer{'s' if len(self.inner) > 1 else ''} ({names})"


def given(optimizer: Any) -> list[Any]:
    """What was passed as one optimizer or as several, as a list; empty for None."""
    if optimizer is None:
        return []
    if isinstance(optimizer, Mapping):
        optimizer = list(optimizer.values())
    return list(optimizer) if isinstance(optimizer, Sequence) else [optimizer]


def take_apart(optimizers: Sequence[Any]) -> Optimizers:
    """``optimizers`` and those within them; UserError for one that is refused.

    Lightning, Fabric, Accelerate and DeepSpeed keep the inner one as ``.optimizer``, as do
    optimizers around others; SAM as ``.base_optimizer``; containers of several as ``.optimizers``
    or, in Megatron, ``.chained_optimizers``.
    """
    links: dict[int, Any] = {}
    inner: list[Any] = []
    waiting = list(optimizers)
    while waiting:
        link = waiting.pop(0)
        if id(link) in links:
            continue
        links[id(link)] = link
        _refuse(link)
        within = _within(link)
        waiting = within + waiting
        if not within:
            inner.append(link)
    taken_apart = Optimizers(list(links.values()), inner)
    for link in inner:
        if not isinstance(link, Optimizer):
            raise UserError(
                f"expected a torch.optim.Optimizer, got {type(link).__name__}, which has no step "
                "hooks to guard frozen entries with"
            )
        if link not in taken_apart.hooked or not getattr(type(link).step, "hooked", False):
            raise UserError(
                f"cannot freeze under {type(link).__name__}: its step does not run step hooks, so "
                "that frozen entries cannot be put back; have it call "
                f"torch.optim.Optimizer.__init__, or {_INSTEAD}"
            )
    return taken_apart


def _within(optimizer: Any) -> list[Any]:
    for name in ("optimizer", "base_optimizer"):
        if getattr(optimizer, name, None) is not None:
            return given(getattr(optimizer, name))
    for name in ("optimizers", "chained_optimizers"):
        several = getattr(optimizer, name, None)
        if isinstance(several, Sequence | Mapping) and not isinstance(several, str):
            return given(several)
    return []


def hooked(links: Sequence[Any]) -> list[Optimizer]:
    """Those with step hooks of their own.

    A trainer's wrapper has none, or holds those of the optimizer within it, as Fabric's does.
    """
    by_hooks = {
        id(optimizer._optimizer_step_pre_hooks): optimizer
        for optimizer in links
        if hasattr(optimizer, "_optimizer_step_pre_hooks")
    }
    return list(by_hooks.values())


def refuse_parameters(
    optimizers: Optimizers, resolved: Sequence[Resolved], model: nn.Module
) -> None:
    """UserError if a parameter with frozen entries is updated by something else than a step.

    Also if the optimizers hold no parameter of the region, unless none of it is trained while
    others of ``model`` are, as under an adapter.
    """
    held = {
        id(parameter)
        for optimizer in optimizers.inner
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    hold, train = ("hold", "they train") if len(optimizers.inner) > 1 else ("holds", "it trains")
    frozen_alone = not any(frozen.parameter.requires_grad for frozen in resolved) and any(
        id(parameter) in held for parameter in model.parameters()
    )
    if (
        resolved
        and not frozen_alone
        and not any(id(frozen.parameter) in held for frozen in resolved)
    ):
        raise UserError(
            f"the {optimizers.described()} {hold} none of the region's parameters, "
            f"first {resolved[0].name}: pass the model that {train}"
        )
    for frozen in resolved:
        if frozen.parameter.requires_grad and id(frozen.parameter) not in held:
            raise UserError(
                f"{frozen.name} has frozen entries and requires a gradient, but is not in the "
                f"{optimizers.described()}: pass the optimizer that holds it too, or set its "
                "requires_grad to False"
            )
        if getattr(frozen.parameter, "_in_backward_optimizers", None):
            raise UserError(
                f"{frozen.name} has frozen entries and an optimizer that steps in backward, which "
                "cannot be guarded: give it to the optimizer alone"
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


def _refuse(optimizer: object) -> None:
    for kind in type(optimizer).__mro__:
        for refused, reason in _REFUSED.items():
            if refused in kind.__name__:
                raise UserError(f"cannot freeze under {kind.__name__}: {reason}; {_INSTEAD}")
