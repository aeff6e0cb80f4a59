"""The next-token loss that scoring, training and evaluation share."""

import torch.nn.functional as F
from torch import Tensor

NO_LABEL = -100  # as in transformers: a place that counts in no loss


def token_nll(logits: Tensor, input_ids: Tensor) -> Tensor:
    """Negative log-likelihood of each token given the ones before it, in nats, fp32.

    ``logits`` is [B, L, V] of any float dtype, ``input_ids`` [B, L]. Returns [B, L - 1]: entry
    ``t`` is the loss of token ``t + 1``; the first token of a row has no context and no loss.
    """
    return next_token_nll(logits[:, :-1], input_ids[:, 1:])


def next_token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """NLL [B, L] in nats, fp32, of ``labels`` [B, L], which stand at the places that predict them.

    ``logits`` is [B, L, V] of any float dtype. Labels of NO_LABEL have a loss of 0.
    """
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), reduction="none", ignore_index=NO_LABEL
    )
    return losses.view(labels.shape)
