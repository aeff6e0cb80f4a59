"""What a forward pass of any causal language model takes: options, and tokens of context."""

import inspect
from typing import Any

from torch import nn

# Names under which configurations keep it: LLaMA's first, GPT-2's, MPT's, BLOOM's, RWKV's, others'.
_CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "seq_length",
    "seq_len",
    "max_seq_length",
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


def without_cache(model: nn.Module) -> dict[str, Any]:
    """Options for a pass that keeps nothing for a next one.

    transformers' models else build a cache of keys and values, or write a state in place, through
    which no gradient flows (RWKV).
    """
    return accepted(model, {"use_cache": False})


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
