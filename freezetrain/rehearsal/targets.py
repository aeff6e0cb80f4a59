"""What the base says at a place: its k likeliest tokens, and the mass of all others."""

from dataclasses import dataclass

import torch
from torch import Tensor

from freezetrain.errors import UserError
from freezetrain.head.chunks import places_at_once


@dataclass(frozen=True)
class Targets:
    """The base's distribution of the next token at P places, all but k tokens as one bucket."""

    tokens: Tensor
    """[P, k] integers: the likeliest tokens, the likeliest first."""
    log_probs: Tensor
    """[P, k]: their log-probabilities, nats."""
    rest: Tensor
    """[P]: log of what all other tokens have together, nats; -inf where there are none."""

    def __len__(self) -> int:
        return len(self.rest)

    @property
    def k(self) -> int:
        return self.tokens.shape[1]

    def probabilities(self) -> Tensor:
        """[P, k + 1] in fp32, the rest last; each place sums to 1, also after rounding to 16 bits.

        In fp64 where the log-probabilities are.
        """
        wide = torch.promote_types(self.log_probs.dtype, torch.float32)
        # Each first: autocast on CPUs knows no float16.
        both = [self.log_probs.to(wide), self.rest.to(wide)[:, None]]
        return torch.cat(both, dim=1).softmax(dim=1)


@torch.no_grad()
def top_targets(logits: Tensor, k: int) -> Targets:
    """The targets that ``logits`` [P, V] say, in fp32 (fp64 where they are), k tokens a place.

    The rest is summed by itself, not told from what the k leave of 1, which would lose it where it
    is small. Some places at a time are in fp32. UserError for a k that is not in 1 to V.
    """
    vocabulary = logits.shape[-1]
    if not 1 <= k <= vocabulary:
        raise UserError(f"k must be 1 to {vocabulary}, the tokens of the vocabulary, got {k}")
    tokens, log_probs, rest = [], [], []
    for chunk in torch.split(logits, places_at_once(vocabulary, logits.device)):
        wide = chunk.to(torch.promote_types(chunk.dtype, torch.float32))
        total = wide.logsumexp(dim=1)
        values, top = wide.topk(k, dim=1)
        others = wide.scatter(1, top, -torch.inf).logsumexp(dim=1)
        tokens.append(top)
        log_probs.append(values - total[:, None])
        rest.append(others - total)
    if not tokens:
        empty = logits.new_empty((0, k))
        return Targets(empty.long(), empty, empty[:, 0])
    return Targets(torch.cat(tokens), torch.cat(log_probs), torch.cat(rest))
