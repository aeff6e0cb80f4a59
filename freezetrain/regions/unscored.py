"""Regions made without scores: whole decoder blocks, and rows of unused tokens."""

import torch
from torch import Tensor, nn

from freezetrain.errors import UserError
from freezetrain.regions.base import Base, base_of
from freezetrain.regions.blocks import block_parameters, decoder_blocks, embedding_parameters
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


def vocabulary_region(model: nn.Module, token_counts: Tensor, min_count: int) -> Region:
    """Rows of the input embedding and the output head for tokens (nearly) never seen.

    Training on one language pushes down the logits of all other languages' tokens; with these
    rows frozen (and the head's bias entries, where it has a bias) it cannot. Ours, not from a
    paper. A tied embedding and head are one tensor and appear once.

    Args:
        token_counts: integers [V], how often each token occurs in the target language's data.
            Rows beyond V, with which an embedding may be padded, count as never seen.
        min_count: 1 or more; 1 takes only tokens that never occur.

    Raises:
        UserError: counts that are no integers [V], negative, or more than the embedding's rows;
            ``min_count`` below 1; every token seen often enough; a model without embeddings.
    """
    names = embedding_parameters(model)
    rows = model.get_parameter(names["input"]).shape[0]
    if token_counts.ndim != 1 or token_counts.is_floating_point() or len(token_counts) > rows:
        raise UserError(
            f"expected token counts as integers [V] with V at most the embedding's {rows} rows, "
            f"got {token_counts.dtype} {list(token_counts.shape)}"
        )
    if min_count < 1 or bool((token_counts < 0).any()):
        raise UserError(
            f"expected min_count of 1 or more and no negative count, got {min_count=} and a "
            f"smallest count of {int(token_counts.min())}"
        )
    seen = torch.zeros(rows, dtype=torch.int64)
    seen[: len(token_counts)] = token_counts.cpu()
    rare = (seen < min_count).nonzero().flatten()
    if not len(rare):
        raise UserError(
            f"expected some token with fewer than {min_count} occurrences, the rarest has "
            f"{int(seen.min())}: raise min_count"
        )
    entries = {}
    for name in names.values():
        shape = model.get_parameter(name).shape
        if shape[0] != rows:
            raise UserError(
                f"expected {rows} rows, one a token, in {name!r} as in the input embedding, got "
                f"shape {list(shape)}"
            )
        take = Entries.from_rows if len(shape) > 1 else Entries.from_indices
        entries[name] = take(shape, rare)
    made = {
        "operation": "vocabulary",
        "min_count": min_count,
        "rows": len(rare),
        "tokens": int(seen.sum()),
    }
    return Region(entries, base_of(model), made)
