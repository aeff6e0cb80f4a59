"""Whether a model really keeps the documents of one sequence apart when positions say so."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from freezetrain.errors import UserError

_LENGTH = 8  # tokens of each of the two documents that are tried


def lays_end_to_end(model: PreTrainedModel) -> bool:
    """Whether rows must be laid end to end in one: flash attention looks for borders only there."""
    return "flash" in model.config._attn_implementation


def require_document_mask(
    forward: Callable[[Tensor, Tensor], Tensor], vocabulary: int, device: torch.device
) -> None:
    """UserError if tokens of one document change the logits of the next.

    ``forward(input_ids [B, L], position_ids [B, L])`` returns logits [B, L, V]. Models of
    transformers see where a document begins from positions that start anew; one that does not look
    (with a recurrent state, or with attention of its own) would mix documents without a word.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (2, 2 * _LENGTH), generator=generator)
    others = tokens.clone()
    others[:, :_LENGTH] = (tokens[:, :_LENGTH] + 1) % vocabulary  # another first document
    positions = torch.arange(_LENGTH).repeat(2, 2)
    with torch.no_grad():
        first, second = (
            forward(ids.to(device), positions.to(device))[:, _LENGTH:] for ids in (tokens, others)
        )
    if not torch.allclose(first.float(), second.float(), rtol=1e-2, atol=1e-3):
        raise UserError(
            "this model does not keep the documents of a sequence apart when their positions start "
            "anew, so that document_mask would do nothing; leave it out"
        )
