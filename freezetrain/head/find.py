"""Which module of a model gives its logits, and what the model does to them afterwards."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from freezetrain.forward import accepted, eval_mode, reshard

_PLACES, _LARGEST = 4, 64.0  # of the forward pass that is looked at

# Names in configurations of transformers' models: of a factor, a divisor, and a soft cap.
_FACTORS = ("logit_scale", "output_multiplier")
_DIVISORS = ("logits_scaling",)
_CAPS = ("final_logit_softcapping", "logits_soft_cap")


@dataclass(frozen=True)
class Head:
    """A linear layer from hidden states to logits, and what follows it, entry by entry.

    Logits are z · ``scale`` for what the layer gives, z, or, with a ``cap`` c, c · tanh(z · scale /
    c) (Gemma 2, arXiv 2408.00118).
    """

    module: nn.Linear
    scale: float = 1.0
    cap: float | None = None

    @property
    def vocabulary(self) -> int:
        """Tokens that it has logits of."""
        return self.module.out_features

    def finish_(self, outputs: Tensor) -> Tensor:
        """The logits of the layer's ``outputs``, in their place."""
        if self.scale != 1:
            outputs.mul_(self.scale)
        return outputs if self.cap is None else outputs.div_(self.cap).tanh_().mul_(self.cap)

    def chain_(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """A gradient for the logits becomes one for the layer's outputs; ``logits`` are lost."""
        if self.cap is not None:  # d tanh = 1 - tanh²
            gradient.mul_(logits.div_(self.cap).square_().neg_().add_(1))
        return gradient if self.scale == 1 else gradient.mul_(self.scale)


_Known = tuple[nn.Linear | None, Head | None]
_found: "WeakKeyDictionary[nn.Module, _Known]" = WeakKeyDictionary()


def find_head(model: nn.Module) -> Head | None:
    """The head of ``model``; None where its logits must be taken as the model gives them.

    A model that ranks hold together must be asked by all of them: it is run on four tokens, its
    layer of ``get_output_embeddings()`` gives known values, and it is looked at what the model
    makes of them. None for a model without that method, and for a layer that is no plain linear
    one; also, with a warning, where logits do not follow from what the configuration says.
    """
    module = plain_head(model)
    if model in _found and _found[model][0] is module:
        return _found[model][1]
    head = None if module is None else _explained(model, module)
    if head is None and module is not None:
        warnings.warn(
            f"{type(model).__name__} does more to its logits than a linear layer, a scale and a "
            "soft cap: they are computed whole, for all places of a batch at once",
            stacklevel=2,
        )
    _found[model] = module, head
    return head


def plain_head(model: nn.Module) -> nn.Linear | None:
    """The layer of ``get_output_embeddings()``, if it is a plain linear one; no forward pass.

    Of the class itself or of one that changes its parameters alone (as FSDP2 makes).
    """
    ask = getattr(model, "get_output_embeddings", None)
    module = ask() if callable(ask) else None
    plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    return module if plain and "forward" not in vars(module) else None


def _explained(model: nn.Module, module: nn.Linear) -> Head | None:
    """The candidate that makes of the layer's outputs what ``model`` does."""
    shown: list[Tensor] = []

    def show(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        # Large and small ones of both signs, whatever the weights, so that a cap is seen.
        count, most = output.numel(), _LARGEST
        values = torch.linspace(-most, most, count, device=output.device).view_as(output)
        # Under tensor parallelism a rank has a part of the vocabulary.
        if not isinstance(module.weight, DTensor):
            shown.append(values.to(output.dtype))
        return values.to(output.dtype)

    device = next(model.parameters()).device
    ids = torch.arange(_PLACES, device=device)[None] % module.out_features
    with _hook(module, show), eval_mode(model), torch.no_grad():
        given = model(input_ids=ids, **accepted(model, {"use_cache": False}))
    reshard(model)
    logits = getattr(given, "logits", None)
    if len(shown) != 1 or not isinstance(logits, Tensor) or logits.shape != shown[0].shape:
        return None
    return next((h for h in _candidates(model, module) if _gives(h, shown[0], logits)), None)


@contextmanager
def _hook(module: nn.Module, hook: Any) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _gives(head: Head, outputs: Tensor, logits: Tensor) -> bool:
    wide = torch.promote_types(outputs.dtype, torch.float32)
    expected = head.finish_(outputs.to(wide, copy=True))
    tolerance = 4 * torch.finfo(outputs.dtype).eps  # each step of the model's own rounds
    return torch.allclose(expected, logits.to(wide), rtol=tolerance, atol=tolerance)


def _candidates(model: nn.Module, module: nn.Linear) -> list[Head]:
    """A plain head first, then what the configuration and the model itself name."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    places = (model, config, text)

    def named(names: tuple[str, ...]) -> list[float]:
        values = (getattr(place, name, None) for place in places for name in names)
        return [float(v) for v in values if isinstance(v, int | float) and v and v > 0]

    scales = [1.0, *named(_FACTORS), *(1 / value for value in named(_DIVISORS))]
    return [Head(module, *pair) for pair in product(scales, [None, *named(_CAPS)])]
