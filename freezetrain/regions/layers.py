"""Whole decoder blocks as a region: the first ones, the last ones."""

from torch import nn

from freezetrain.errors import UserError
from freezetrain.regions.base import Base
from freezetrain.regions.blocks import block_parameters, decoder_blocks
from freezetrain.regions.entries import Entries
from freezetrain.regions.region import Region
from freezetrain.regions.resolve import full_shape


def layers_region(
    model: nn.Module,
    first: int = 0,
    last: int = 0,
    *,
    norms: bool = False,
    base: Base | None = None,
) -> Region:
    """All weights of the ``first`` and the ``last`` decoder blocks, biases too.

    ``norms``: with the parameters of their norms. Embeddings, the last norm and the output head
    belong to no block.

    Raises:
        UserError: no block wanted, more than the model has, or a model without decoder blocks.
    """
    blocks = [name for name, _ in decoder_blocks(model)]
    if min(first, last) < 0 or not 1 <= first + last <= len(blocks):
        raise UserError(
            f"expected 1 to {len(blocks)} decoder blocks in all, as many as the model has, got the "
            f"{first=} and the {last=}"
        )
    wanted = tuple(f"{name}." for name in [*blocks[:first], *blocks[len(blocks) - last :]])
    entries = {
        name: Entries.whole(full_shape(parameter))
        for name, parameter in block_parameters(model, norms=norms).items()
        if name.startswith(wanted)
    }
    made = {"operation": "layers", "first": first, "last": last, "norms": norms}
    return Region(entries, base, made)
