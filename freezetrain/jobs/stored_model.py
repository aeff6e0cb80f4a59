"""A model whose weights are read from its files one at a time, where that is possible."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from freezetrain.errors import UserError
from freezetrain.freezing.folder import WeightsFolder
from freezetrain.models import load_model, local_folder, meta_model
from freezetrain.recipe import ModelSource
from freezetrain.regions.resolve import plain_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Read = Callable[[nn.Parameter], Tensor]


def stored_model(source: ModelSource) -> tuple["PreTrainedModel", Read | None]:
    """The model without weights, and a function that reads those of one of its parameters.

    transformers stores some models under other names or shapes than they have in memory (fused
    experts), or quantized: these are loaded whole, and the function is None. UserError as
    :func:`load_model`.
    """
    model = meta_model(source)
    try:
        folder = WeightsFolder(local_folder(source))
        stored = _stored_names(model, folder)
    except UserError:  # load_model says what is wrong, if anything is
        return load_model(source), None
    if getattr(model.config, "quantization_config", None) is not None:
        return load_model(source), None
    dtype = None if source.dtype == "stored" else getattr(torch, source.dtype)
    return model, lambda parameter: folder[stored[id(parameter)]].to(dtype=dtype)


def _stored_names(model: nn.Module, folder: WeightsFolder) -> dict[int, str]:
    """Id of each parameter -> its name in the files; UserError where they hold it otherwise."""
    names = {}
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        stored = names[id(parameter)] = folder.stored_name(plain_name(name), shape)
        if folder.shape(stored) != shape:
            raise UserError(f"{folder.path} holds {stored!r} in another shape than {list(shape)}")
    return names
