"""The next-token loss that scoring, training and evaluation share."""

import torch.nn.functional as F
from torch import Tensor


def token_nll(logits: Tensor, input_ids: Tensor) -> Tensor:
    """Negative log-likelihood of each token given the ones before it, in nats, fp32.

    ``logits`` is [B, L, V] of any float dtype, ``input_ids`` [B, L]. Returns [B, L - 1]: entry
    ``t`` is the loss of token ``t + 1``; the first token of a row has no context and no loss.
    """
    losses = F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none"
    )
    return losses.view(input_ids.shape[0], -1)
