"""Gradient checkpointing: activations of all decoder blocks, or of every n-th, computed again."""

from typing import Any

from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from freezetrain.errors import UserError
from freezetrain.recipe.check import check
from freezetrain.regions import decoder_blocks

_FIELD = "engine.gradient_checkpointing"


def recomputed(blocks: int, every: bool | int | None) -> list[bool]:
    """Of each of so many ``blocks``, whether it is computed again in the backward pass.

    ``every``: the n-th, the 2n-th and so on, counted from the end. With n of 2 or more the last
    block is none of them: it would be computed again while all others still hold what they keep,
    which is when most memory is taken.
    """
    return [bool(every) and (blocks - index) % int(every or 1) == 0 for index in range(blocks)]


def require_checkpointing(model: PreTrainedModel, every: bool | int | None) -> None:
    """UserError where ``model``, which may be without weights, cannot do what the recipe says."""
    if not every:
        return
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"{_FIELD} is {str(every).lower()}, and transformers cannot compute activations of "
            f"{type(model).__name__} again; set it to false"
        )
    if every is True:
        return
    blocks = [block for _, block in decoder_blocks(model)]
    most = f"at most {len(blocks)}, as many as the model has decoder blocks"
    check(every <= len(blocks), _FIELD, most, every)
    singly = all(isinstance(block, GradientCheckpointingLayer) for block in blocks)
    name = type(model).__name__
    expected = f"true or false: transformers has no switch for single blocks of {name}"
    check(singly, _FIELD, expected, every)


def checkpoint_blocks(model: PreTrainedModel, every: bool | int) -> None:
    """Have the :func:`recomputed` blocks of ``model`` computed again while it trains."""
    # Another name since transformers 5.23, which warns of the older one.
    name = "activation_checkpointing_enable"
    getattr(model, name, model.gradient_checkpointing_enable)({"use_reentrant": False})
    blocks = [block for _, block in decoder_blocks(model)]
    for block, again in zip(blocks, recomputed(len(blocks), every), strict=True):
        # transformers' own every_n_layers, which not all versions have, counts from the first.
        modules: Any = () if again else block.modules()
        for module in modules:
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False
