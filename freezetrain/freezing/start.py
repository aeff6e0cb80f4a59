"""The values that frozen entries start with, where they are not those that the model has."""

from collections.abc import Mapping

import torch
from torch import Tensor

from freezetrain.errors import UserError, near_misses
from freezetrain.freezing.folder import WeightsFolder
from freezetrain.freezing.layout import Layout
from freezetrain.freezing.shard import Shard


@torch.no_grad()
def clamp(layout: Layout, value: float) -> None:
    """Set every frozen entry to ``value``, in the masters and in the weights of the forward pass.

    The paper's second variant, with 0. UserError unless ``value`` is finite in their dtypes.
    """
    for dtype in {shard.owner.dtype for shard in (*layout.masters, *layout.copies)}:
        if not torch.tensor(value, dtype=torch.float64).to(dtype).isfinite():
            raise UserError(f"clamp must be a finite number in {dtype}, got {value}")
    for shard in (*layout.masters, *layout.copies):
        shard.entries.fill(shard.of(shard.owner), value)


@torch.no_grad()
def take_stored(layout: Layout, stored: Mapping[str, Tensor]) -> None:
    """Give the masters the values that the base is stored with, which the engine has rounded.

    An engine that trains in 16 bits may make its fp32 masters from weights that it has rounded
    before. ``stored``: the region's name of a parameter -> tensor. UserError if it lacks one, has
    another shape, or is not what the model's weights were rounded from.
    """
    dtypes = {copy.number: copy.owner.dtype for copy in layout.copies}
    for shard in layout.masters:  # all of them before the first is written
        values, here = _stored_values(shard, stored), shard.of(shard.owner)
        rounded = values.to(dtypes.get(shard.number, here.dtype))
        if not torch.equal(rounded.to(here.dtype).cpu(), shard.read().cpu()):
            raise UserError(
                f"the weights of {shard.name} at its frozen entries are not those of the base "
                "rounded to the model's dtype: pass the base that the model was loaded from"
            )
    for shard in layout.masters:
        shard.write(_stored_values(shard, stored))


def _stored_values(shard: Shard, stored: Mapping[str, Tensor]) -> Tensor:
    """The stored values at the shard's entries: [count]."""
    name = shard.key
    if isinstance(stored, WeightsFolder):
        name = stored.stored_name(name, shard.shape)
    if name not in stored:
        raise UserError(f"the base holds no {name!r}{near_misses(name, stored)}")
    whole = stored[name]
    if tuple(whole.shape) != shard.shape:
        raise UserError(
            f"{name!r} has shape {list(whole.shape)} in the base and {list(shard.shape)} in the "
            "model: pass the base that the model was loaded from"
        )
    here = whole.flatten()[shard.first : shard.first + shard.entries.numel]
    return shard.entries.to("cpu").read(here.view(shard.entries.shape))
