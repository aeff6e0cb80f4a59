"""The base: which model a region or scores were made for, and the fingerprint that tells it."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from freezetrain.errors import UserError
from freezetrain.regions.adapters import base_names, own_parameters
from freezetrain.regions.parameters import full_shape, plain_name

_SAMPLES = 64  # values a parameter that go into the fingerprint


@dataclass(frozen=True)
class Base:
    """The model that a region belongs to, named for people and fingerprinted for checks."""

    name: str | None
    """Folder or Hugging Face identifier, if known."""
    revision: str | None
    """Revision of the identifier, for example a commit, if known."""
    fingerprint: str
    """:func:`fingerprint` of the model, 64 hexadecimal digits."""


def base_of(model: nn.Module, full: Callable[[nn.Parameter], Tensor] | None = None) -> Base:
    """Fingerprint ``model``, with the name and the revision that transformers loaded it under.

    ``full`` as in :func:`fingerprint`.
    """
    return Base(
        name=getattr(model, "name_or_path", None) or None,
        revision=getattr(getattr(model, "config", None), "_commit_hash", None),
        fingerprint=fingerprint(model, full),
    )


def common_base(first: Base | None, second: Base | None) -> Base | None:
    """The base of what two regions make together; UserError where they are of different ones."""
    if first is None or second is None:
        return first or second
    if first.fingerprint != second.fingerprint:
        names = " and ".join(base.name or base.fingerprint[:12] for base in (first, second))
        raise UserError(f"the regions belong to different base models: {names}")
    return first


@torch.no_grad()
def fingerprint(
    model: nn.Module,
    full: Callable[[nn.Parameter], Tensor] | None = None,
    read: Callable[[str, Tensor], Tensor] | None = None,
) -> str:
    """SHA-256 over names, shapes and up to 64 evenly spaced values of every parameter, in hex.

    Values are rounded to bfloat16 first, so that one base has one fingerprint whether it is
    stored or loaded in float64, float32 or bfloat16, on any device. Not so in float16, which
    rounds elsewhere, nor quantized: there, load the base in the dtype that it was made in.
    Of a tied parameter the first name counts; parameters that PEFT's adapters have added do not
    count. Changes between the samples go unseen: this tells
    models apart, it does not prove them equal. ``full`` gives the whole of a parameter that an
    engine has split over ranks; ``read`` instead, where the model has no weights, the values of one
    by its name in the base and their flat indices [n].
    """
    digest = hashlib.sha256()
    adapters, base_name = own_parameters(model), base_names(model)
    parameters = {
        plain_name(base_name(name)): value
        for name, value in model.named_parameters()
        if name not in adapters
    }
    for name in sorted(parameters):
        parameter = parameters[name]
        digest.update(json.dumps([name, list(full_shape(parameter))]).encode())
        if read:
            sample = read(name, _places(math.prod(full_shape(parameter))))
        else:
            sample = _sample(full(parameter) if full else parameter)
        sample = sample.float().bfloat16().cpu().contiguous()
        digest.update(sample.view(torch.int16).numpy().astype("<i2").tobytes())
    return digest.hexdigest()


def _places(size: int) -> Tensor:
    """Flat indices of up to 64 of ``size`` values, evenly spaced."""
    count = min(_SAMPLES, size)
    return torch.arange(count) * size // max(count, 1)


def _sample(tensor: Tensor) -> Tensor:
    """The values of ``tensor`` at these indices, without flattening it."""
    places = _places(tensor.numel()).to(tensor.device)
    return tensor[torch.unravel_index(places, tensor.shape)] if tensor.ndim else tensor.view(1)
