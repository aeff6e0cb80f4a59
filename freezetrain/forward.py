"""What a forward pass of any causal language model takes: options, and tokens of context."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from freezetrain.errors import UserError

Forward = Callable[[nn.Module, Tensor], Any]
"""Calls a model with token ids [B, L]; gives logits [B, L, V], or an object with ``.logits``."""

# Names under which configurations keep it: LLaMA's first, GPT-2's, MPT's, BLOOM's, RWKV's, others'.
_CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "seq_length",
    "seq_len",
    "max_seq_length",
    "sequence_len",
    "block_size",
    "max_sequence_length",
    "context_length",
    "max_context_length",
    "max_target_positions",
)

# Where the configuration of a model that also sees or hears keeps that of its language model.
_TEXT = ("text_config", "language_config", "llm_config", "decoder", "generator")


def accepted(model: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """Those of ``options`` that ``model.forward`` takes."""
    parameters = inspect.signature(model.forward).parameters
    names = set(parameters)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        names |= {"attention_mask", "use_cache"}
    return {name: value for name, value in options.items() if name in names}


def require_input_ids(model: nn.Module) -> None:
    """UserError unless ``model`` can be called with ``input_ids=``, as transformers' models can."""
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if "input_ids" not in parameters and not takes_any:
        raise UserError(
            f"{type(model).__name__} takes {', '.join(parameters) or 'nothing'}, not input_ids; "
            "give forward=lambda model, ids: ... that returns its logits for ids [B, L]"
        )


def logits_of(
    model: nn.Module, ids: Tensor, forward: Forward | None, options: dict[str, Any]
) -> Tensor:
    """Logits [B, L, V] for ``ids`` [B, L], of the last places alone where ``options`` asks for it.

    ``options`` go to a model that is called without ``forward``, those that it takes. UserError
    for what is no such tensor.
    """
    if forward is not None:
        output = forward(model, ids)
    else:
        output = model(input_ids=ids, **accepted(model, options))
    logits = getattr(output, "logits", output)
    if isinstance(logits, Tensor) and logits.ndim == 3 and len(logits) == len(ids):
        return logits
    shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    raise UserError(
        f"expected logits of shape {[*ids.shape, 'V']} from {type(model).__name__}, got {shape}; "
        "give forward=lambda model, ids: ... that returns them"
    )


def without_cache(model: nn.Module) -> dict[str, Any]:
    """Options for a pass that keeps nothing for a next one.

    transformers' models else build a cache of keys and values, or write a state in place, through
    which no gradient flows (RWKV).
    """
    return accepted(model, {"use_cache": False})


def reshard(model: nn.Module) -> None:
    """Have FSDP2 put its sharded parameters back into ``model``.

    A forward pass without a backward one, as in an evaluation, leaves the whole ones in the root.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts each submodule's own mode back, as some may be kept in eval mode on purpose."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def context_length(model: nn.Module) -> int | None:
    """Tokens that ``model`` was built for; None where its configuration is silent.

    Of a model that also sees or hears it is what its language model was built for.
    """
    config = getattr(model, "config", None)
    for part in (*(getattr(config, name, None) for name in _TEXT), config):
        for name in _CONTEXT:
            value = part.get(name) if isinstance(part, dict) else getattr(part, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None
