"""Optimizers by name or import path: their arguments, what they are refused for, their state."""

import importlib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor import Shard as Split
from torch.optim import AdamW, Optimizer

from freezetrain.errors import UserError, near_misses
from freezetrain.extras import require
from freezetrain.freezing.optimizers import take_apart
from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.optimizers import OPTIMIZERS, given_elsewhere, is_import_path
from freezetrain.training.groups import Group, parameter_groups
from freezetrain.training.muon import MuonWithAdamW
from freezetrain.user_files import libraries_silenced, reason

Make = Callable[[list[dict[str, Any]]], Optimizer]

Cut = Callable[[Tensor], list[Tensor]]

_BLOCK, _SMALLEST = 256, 4096  # entries with one scale, and of a tensor that is kept in 8 bits


def make_optimizer(groups: Sequence[Group], settings: Optimization, fused: bool) -> Optimizer:
    """The optimizer that ``settings`` ask for, over ``groups``.

    ``fused``: PyTorch's fused kernel of AdamW, where that is the optimizer. UserError for one that
    is not installed, that cannot be imported, or that does not take what it is given.
    """
    rate, decay = settings.learning_rate, settings.weight_decay
    # YAML has no tuples, which optimizers expect.
    more = {n: tuple(v) if isinstance(v, list) else v for n, v in settings.optimizer_args.items()}
    dicts: list[dict[str, Any]] = [
        {
            "params": group.parameters,
            "lr": rate * group.factor,
            "weight_decay": decay if group.decays else 0.0,
        }
        for group in groups
    ]
    try:
        with libraries_silenced():
            return _maker(settings, more, groups, fused)(dicts)
    except UserError:
        raise
    except Exception as error:  # whatever the class says of its arguments
        said = f" with {settings.optimizer_args}" if settings.optimizer_args else ""
        raise UserError(
            f"optimization.optimizer {settings.optimizer} cannot be made{said}: {reason(error)}; "
            "look at optimization.optimizer_args"
        ) from error


def require_optimizer(settings: Optimization, *, held: bool, flat: bool) -> None:
    """UserError for an optimizer that cannot be used, before anything is loaded.

    It is made for a small matrix. A class that is given by its path also steps it, and must do so
    in one pass. ``held``: weights are frozen or pulled, and its step must let that be guaranteed.
    ``flat``: it will step flat parts of all weights laid end to end, as under DeepSpeed, and must
    do to each weight what it would do in a matrix.
    """
    if not is_import_path(settings.optimizer):
        extra = OPTIMIZERS[settings.optimizer].extra
        if extra is not None:
            require(extra, f"optimization.optimizer {settings.optimizer}", ", or use adamw")
        _small(settings, [nn.Parameter(torch.zeros(2, 2))])
        return
    whole, optimizer = _stepped(settings, lambda tensor: [tensor])
    if held:
        take_apart([optimizer])
    if flat:
        parts, _ = _stepped(settings, lambda tensor: list(tensor.flatten().split(3000)))
        if not torch.allclose(parts, whole, rtol=1e-5, atol=1e-7):
            raise UserError(
                f"optimization.optimizer {settings.optimizer} steps a matrix otherwise than the "
                "same weights laid end to end in parts, as DeepSpeed has them; use ddp or fsdp2"
            )


def require_split(settings: Optimization, mesh: DeviceMesh) -> None:
    """UserError, on all ranks, for a class that does not step what FSDP2 has split as the whole."""
    if not is_import_path(settings.optimizer):
        return

    def split(tensor: Tensor) -> list[Tensor]:
        return [distribute_tensor(tensor, mesh, [Split(0)])]

    whole, _ = _stepped(settings, lambda tensor: [tensor])
    parts, _ = _stepped(settings, split)
    if not torch.allclose(parts, whole, rtol=1e-5, atol=1e-7):
        raise UserError(
            f"optimization.optimizer {settings.optimizer} steps a matrix that FSDP2 has split "
            "otherwise than a whole one; use ddp"
        )


def state_bytes(model: nn.Module, settings: Optimization, size: int, flat: bool = False) -> float:
    """Bytes that the optimizer keeps of all weights of ``model`` that are trained.

    Each of them takes ``size`` bytes where the optimizer steps it. ``flat``: it steps large parts
    of all weights laid end to end, as under DeepSpeed. Of a class that is given by its path it is
    what it kept of a matrix that it has stepped. ``model`` may be on the meta device.
    """
    groups = parameter_groups(model, settings)
    measured = _measured_state(settings) if is_import_path(settings.optimizer) else 0.0
    total = 0.0
    for group in groups:
        for parameter in group.parameters:
            shape, weights = parameter.shape, parameter.numel()
            match settings.optimizer:
                case "adamw":
                    total += 2 * size * weights
                case "adamw-8bit" if weights < _SMALLEST and not flat:
                    total += 2 * 4 * weights
                case "adamw-8bit":
                    scales = weights / _BLOCK if flat else -(-weights // _BLOCK)
                    total += 2 * (weights + 4 * scales)
                case "adafactor" if len(shape) < 2:
                    total += 4 * weights
                case "adafactor":
                    total += 4 * (prod(shape[:-1]) + prod((*shape[:-2], shape[-1])))
                case "lion":
                    total += size * weights
                case "muon":
                    total += (1 if group.inner else 2) * size * weights
                case _:
                    total += measured * size / 4 * weights
    return total


def _maker(
    settings: Optimization, more: dict[str, Any], groups: Sequence[Group], fused: bool
) -> Make:
    """What makes the optimizer of one dict for each of ``groups``."""
    betas = (settings.beta1, settings.beta2)
    kind: type[Optimizer]
    own: dict[str, Any] = {"betas": betas}
    match settings.optimizer:
        case "adamw":
            kind = AdamW
            own["fused"] = True if fused else None
        case "adamw-8bit":
            from bitsandbytes.optim import AdamW8bit

            kind = AdamW8bit
        case "adafactor":
            # Learning rates as AdamW has them: not by the size of weights, nor falling by itself.
            from transformers.optimization import Adafactor

            kind = Adafactor
            own = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
        case "lion":
            from lion_pytorch import Lion

            kind = Lion
        case "muon":
            if hasattr(torch.optim, "Muon"):  # where it has none, MuonWithAdamW says so
                _require_taken(torch.optim.Muon, settings)
            inner = [group.inner for group in groups]
            return partial(MuonWithAdamW, inner=inner, betas=betas, **more)
        case _:
            kind = _imported(settings.optimizer)
            own = _of_class(kind, settings)
    _require_taken(kind, settings)
    return partial(kind, **{**own, **more})


def _require_taken(kind: type[Optimizer], settings: Optimization) -> None:
    """UserError for one of ``optimizer_args`` that the class ``kind`` does not take."""
    parameters = inspect.signature(kind).parameters.values()
    if any(each.kind == each.VAR_KEYWORD for each in parameters):
        return
    elsewhere = given_elsewhere(settings.optimizer)
    takes = [each.name for each in parameters if each.name not in elsewhere]
    for name in settings.optimizer_args:
        if name not in takes:
            raise UserError(
                f"optimization.optimizer_args has {name!r}, which {settings.optimizer} does not "
                f"take{near_misses(name, takes)}; it takes {' '.join(takes)}"
            )


def _imported(path: str) -> type[Optimizer]:
    """The class at an import path. UserError where there is none, or where it is another thing."""
    module_name, _, name = path.rpartition(".")
    try:
        with libraries_silenced():
            module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything
        raise UserError(
            f"optimization.optimizer {path}: cannot import {module_name}: {reason(error)}; install "
            "it, or name the folder that it is in in PYTHONPATH"
        ) from error
    found = getattr(module, name, None)
    if not (inspect.isclass(found) and issubclass(found, Optimizer)):
        classes = [
            other
            for other, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, Optimizer) and value is not Optimizer
        ]
        raise UserError(
            f"optimization.optimizer {path}: {module_name} has no torch.optim.Optimizer "
            f"{name!r}{near_misses(name, classes)}; give the path of a class"
        )
    return found


def _of_class(kind: type[Optimizer], settings: Optimization) -> dict[str, Any]:
    """What a class takes of the recipe; UserError for what is set there and that it does not."""
    path = settings.optimizer
    takes = inspect.signature(kind).parameters
    if "lr" not in takes:
        raise UserError(
            f"optimization.optimizer {path} takes no learning rate lr, by which schedule and pull "
            "go; use one that does"
        )
    own: dict[str, Any] = {"lr": settings.learning_rate}
    if "weight_decay" in takes:
        own["weight_decay"] = settings.weight_decay
    elif settings.weight_decay != Optimization.weight_decay:
        raise _not_taken("weight_decay", settings.weight_decay, path)
    pair = getattr(takes.get("betas"), "default", None)
    if isinstance(pair, tuple | list) and len(pair) == 2 and "betas" not in settings.optimizer_args:
        own["betas"] = (settings.beta1, settings.beta2)
    else:
        for name, value in settings.betas_given.items():
            raise _not_taken(name, value, path)
    return own


def _not_taken(name: str, value: float, path: str) -> UserError:
    return UserError(
        f"optimization.{name} is {value:g}, which {path} does not take by that name; leave it out, "
        "or give what it takes in optimization.optimizer_args"
    )


def _small(settings: Optimization, tensors: list[nn.Parameter]) -> Optimizer:
    """Over tensors that stand for a matrix of a decoder block."""
    return make_optimizer([Group(1.0, True, True, tensors)], settings, fused=False)


def _stepped(settings: Optimization, cut: Cut) -> tuple[Tensor, Optimizer]:
    """The weights [N] of a matrix after two steps, in the parts that ``cut`` makes of it.

    On a GPU where there is one. UserError where the optimizer cannot, or asks for the loss again.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = torch.Generator().manual_seed(0)

    def drawn() -> list[Tensor]:
        return cut(torch.randn(64, 80, generator=source).to(device))

    tensors = [nn.Parameter(part) for part in drawn()]
    optimizer = _small(settings, tensors)
    asked = 0

    def loss() -> float:
        nonlocal asked
        asked += 1
        return 1.0

    path = settings.optimizer
    for _ in range(2):
        for part, gradient in zip(tensors, drawn(), strict=True):
            part.grad = gradient.clone()
        try:
            with libraries_silenced():
                optimizer.step(loss)
        except Exception as error:  # whatever its step says
            of = "a small matrix" if len(tensors) == 1 else "parts of a matrix"
            split = " that FSDP2 has split" if isinstance(tensors[0], DTensor) else ""
            raise UserError(
                f"optimization.optimizer {path} cannot step {of}{split}: {reason(error)}; use "
                "another optimizer or engine"
            ) from error
    if asked != 2:
        raise UserError(
            f"optimization.optimizer {path} asked for the loss {asked} times in 2 steps, and a "
            "step has one forward and backward pass here; use another optimizer"
        )
    whole = [t.full_tensor() if isinstance(t, DTensor) else t for t in tensors]
    return torch.cat([tensor.detach().flatten() for tensor in whole]), optimizer


def _measured_state(settings: Optimization) -> float:
    """Bytes of state of a weight in fp32, of a matrix that is stepped."""
    weights, optimizer = _stepped(settings, lambda tensor: [tensor])
    values = [value for state in optimizer.state.values() for value in state.values()]
    kept = [value for value in values if isinstance(value, Tensor) and value.dim()]
    return sum(value.nbytes for value in kept) / weights.numel()
