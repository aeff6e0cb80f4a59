"""What the weights of a model's folder must be, and its configuration, before the model runs."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.nn.modules.module import register_module_module_registration_hook

from freezetrain.errors import UserError
from freezetrain.freezing.weights_folder import WeightsFolder
from freezetrain.places import COPY
from freezetrain.user_files import quiet, reason

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MOST_MODULES = 200_000

_MOST_TO_TRY = 3_000  # modules of a model that is tried, each of which takes a millisecond

_ELEMENTS_PER_BYTE = 8  # of the most tightly packed weights


def check_weights(files: WeightsFolder, model: nn.Module) -> None:
    """UserError for files that are too small to hold ``model``, which is on the meta device."""
    size = sum(file.stat().st_size for file in {header.file for header in files.headers.values()})
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    described = sum(tensor.numel() for tensor in tensors.values())
    if described > size * _ELEMENTS_PER_BYTE:
        raise UserError(
            f"config.json of {files.path} describes a model of {described:,} weights, and its "
            f"files hold {size:,} bytes; give the config.json that the weights were saved with"
        )


def layers_left_out(model: nn.Module, unexpected: set[str]) -> list[str]:
    """Layers of the files that ``model`` lacks: those of the names ``unexpected`` that are whole.

    Files may hold more for a layer than the model has parameters, such as older buffers.
    """
    own, others = _by_layer(model.state_dict()), _by_layer(unexpected)
    extras = {name for layer, names in others.items() if layer in own for name in names}
    return [
        f"{stem}{number}"
        for (stem, number), names in others.items()
        if (stem, number) not in own
        and any(names - extras == known for (place, _), known in own.items() if place == stem)
    ]


def _by_layer(names: Iterable[str]) -> dict[tuple[str, str], set[str]]:
    layers: dict[tuple[str, str], set[str]] = {}
    for name in names:
        if match := re.match(r"(.*?\.)(\d+)\.(.+)", name):
            layers.setdefault((match[1], match[2]), set()).add(match[3])
    return layers


@contextmanager
def few_modules(path: str) -> Iterator[None]:
    """UserError where a model is built inside that has more modules than any."""
    count = 0

    def register(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
        nonlocal count
        count += 1
        if count > _MOST_MODULES:
            raise UserError(
                f"the configuration of {path} describes a model of more than {_MOST_MODULES:,} "
                f"modules; {COPY}"
            )

    handle = register_module_module_registration_hook(register)
    try:
        yield
    finally:
        handle.remove()


def check_runs(model: "PreTrainedModel", path: str) -> None:
    """UserError where ``model``, on the meta device, cannot compute a logit.

    It runs on tensors without data, which has the errors of sizes and settings that do not fit one
    another. Those of operations that need data say nothing of the configuration.
    """
    if "flash" in str(model.config._attn_implementation):  # which runs on a GPU alone
        return
    if sum(1 for _ in model.modules()) > _MOST_TO_TRY:
        return
    described = {**model.config.to_dict(), "_name_or_path": ""}  # wherever it lies
    settings = f"{type(model)} {model.dtype} {described}"
    if settings not in _FAILURES:
        _FAILURES[settings] = _failure(model)
    if failure := _FAILURES[settings]:
        raise UserError(
            f"the model that config.json of {path} describes cannot run: {failure}; {COPY}"
        )


_FAILURES: dict[str, str | None] = {}
"""Of each configuration that was tried in this process, why it cannot run."""


def _failure(model: "PreTrainedModel") -> str | None:
    # Of what cannot be tried torch logs whole tracebacks.
    with torch.no_grad(), FakeTensorMode(), quiet("torch._subclasses.fake_tensor"):
        tensors = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype)
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        }
        inputs = {"input_ids": torch.zeros(1, 2, dtype=torch.long), "use_cache": False}
        try:
            torch.func.functional_call(model, tensors, (), inputs)
        except (TypeError, KeyError, IndexError, AttributeError, ValueError, ArithmeticError) as e:
            return reason(e)
        except (
            DataDependentOutputException,
            DynamicOutputShapeException,
            UnsupportedOperatorException,
        ):
            return None
        except Exception as error:
            said = reason(error)
            return said if _OF_SHAPES.search(said) else None
    return None


_OF_SHAPES = re.compile(r"shape|size|dimension|divisible|broadcast", re.IGNORECASE)
