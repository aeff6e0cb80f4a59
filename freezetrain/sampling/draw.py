"""Drawing sequences from a model with its own probabilities, and what it says at their places."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from freezetrain.errors import CheckError
from freezetrain.generation.generate import NOT_FINITE, cut_at_end, generate, logits_of
from freezetrain.head.chunks import chunks_of_logits
from freezetrain.head.find import Head, find_head
from freezetrain.head.inside import hidden_states
from freezetrain.rehearsal.pieces import Piece
from freezetrain.rehearsal.targets import Targets, top_targets

# Of a forward pass: places where logits are computed some at a time, else logits, 256 MB in fp32.
_PLACES_AT_ONCE, _LOGITS_AT_ONCE = 1 << 13, 1 << 26


def seed_of(seed: int, piece: int) -> int:
    """The seed of one piece: its bits are as good as independent of those of every other."""
    return int.from_bytes(hashlib.sha256(f"{seed} {piece}".encode()).digest()[:7], "big")


@torch.no_grad()
def draw_sequences(
    model: PreTrainedModel,
    given: Tensor,
    *,
    length: int,
    temperature: float,
    ends: Sequence[int],
    seed: int,
    cache: bool = True,
    during: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Sequences that go on from ``given`` [n, G] int64, each of at most ``length`` tokens, int64.

    Each token is drawn from the softmax of the model's logits divided by ``temperature``, whatever
    its generation_config says. A sequence ends with the first of ``ends`` that is drawn, which it
    holds. ``seed`` decides the draws, and no random state changes. ``cache``: keep what was
    computed of earlier tokens. ``during`` is called at each step with the number of tokens that
    the sequences have.
    """
    watching = StoppingCriteriaList([_Watch(during)] if during else [])
    # The likeliest token, which _Draw makes the one that it has drawn.
    draws = LogitsProcessorList([_Draw(temperature, seed, model.device)])
    generated = generate(
        model, given, length, ends, cache, stopping_criteria=watching, logits_processor=draws
    )
    return [cut_at_end(row, given.shape[1], ends) for row in generated.cpu()]


class _Draw(LogitsProcessor):
    """Leaves one token of each row, drawn from the softmax of its logits.

    By inverting the distribution function, in fp64: one random number a row. torch.multinomial,
    which ``generate`` calls, takes one for each token of the vocabulary, and on a CPU two to seven
    times as long.
    """

    def __init__(self, temperature: float, seed: int, device: torch.device) -> None:
        self._temperature = temperature
        self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        upto = (scores / self._temperature).softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
        place = torch.rand(
            len(scores), 1, dtype=torch.float64, device=scores.device, generator=self._generator
        )
        # The first whose share reaches beyond the place: never one without probability.
        token = torch.searchsorted(upto, place * upto[:, -1:], right=True)
        token = token.clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


class _Watch(StoppingCriteria):
    """Stops nothing: it is called at each step."""

    def __init__(self, during: Callable[[int], None]) -> None:
        self._during = during

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self._during(input_ids.shape[1])
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@torch.no_grad()
def targets_of(model: PreTrainedModel, sequences: Sequence[Tensor], k: int) -> Targets:
    """What the model says after each token of ``sequences``, one after another, in fp32 on the CPU.

    A few sequences at a time, filled up at their ends, which those before do not see; logits of
    some places at a time where the model's head is found. CheckError where they are not finite.
    """
    head = find_head(model)
    longest = max(map(len, sequences), default=1)
    places = _PLACES_AT_ONCE if head else _LOGITS_AT_ONCE // vocabulary_of(model)
    rows = max(1, places // longest)
    parts = []
    for first in range(0, len(sequences), rows):
        some = list(sequences[first : first + rows])
        ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True).to(model.device)
        lengths = torch.tensor([len(sequence) for sequence in some], device=ids.device)
        there = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        for logits in _some_logits(model, head, ids, there):
            found = top_targets(logits, k)
            if bool(found.log_probs.isnan().any()):
                raise CheckError(NOT_FINITE)
            parts.append([found.tokens.cpu(), found.log_probs.cpu(), found.rest.cpu()])
    return Targets(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _some_logits(
    model: PreTrainedModel, head: Head | None, ids: Tensor, there: Tensor
) -> Iterator[Tensor]:
    """Logits [p, V] of the places of ``ids`` [B, L] that are ``there``, in their order."""
    if head is None:
        yield logits_of(model, ids)[there]
        return
    hidden = hidden_states(head, lambda: logits_of(model, ids))
    yield from (logits for _, logits in chunks_of_logits(hidden[there], head))


def vocabulary_of(model: PreTrainedModel) -> int:
    """Tokens that the model has logits of, which may be more than its tokenizer has."""
    lookup: Any = model.get_output_embeddings
    head = lookup()
    if head is not None and getattr(head, "weight", None) is not None:
        return int(head.weight.shape[0])
    return int(model.config.get_text_config().vocab_size)


def drawn_places(piece: Piece) -> Tensor:
    """Whether the token after each place of a piece was drawn there, [P] bool."""
    lengths = piece.starts.diff()
    place = torch.arange(len(piece.tokens)) - piece.starts[:-1].repeat_interleave(lengths)
    after = place + 1
    given = piece.given.repeat_interleave(lengths)
    return (after >= given) & (after < lengths.repeat_interleave(lengths))


def surprise(piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
    """Of each drawn token: its NLL, and what the base expected that to be, and its variance.

    Nats, [D] of D drawn places, all tokens beyond the k being one. Where tokens are drawn with the
    base's probabilities, NLL minus entropy is 0 on average.
    """
    drawn = drawn_places(piece)
    following = F.pad(piece.tokens.long()[1:], (0, 1))[drawn]
    targets = piece.targets
    probabilities = Targets(
        targets.tokens[drawn], targets.log_probs[drawn], targets.rest[drawn]
    ).probabilities()
    logs = probabilities.log().clamp(min=-1e4)
    hit = targets.tokens[drawn].long() == following[:, None]
    bucket = torch.where(hit.any(dim=1), hit.int().argmax(dim=1), hit.shape[1])
    nll = -logs.gather(1, bucket[:, None])[:, 0]
    entropy = -(probabilities * logs).sum(dim=1)
    variance = (probabilities * logs.square()).sum(dim=1) - entropy.square()
    return nll, entropy, variance.clamp(min=0)


def check_drawn(piece: Piece) -> None:
    """CheckError unless the drawn tokens are such as the base's distribution at their places gives.

    For tokens drawn at temperature 1. One piece in very many would be refused by chance: the mean
    surprise must differ from its expectation by more than 0.05 nats and 8 standard errors.
    """
    nll, entropy, variance = surprise(piece)
    excess = float((nll - entropy).sum())
    if abs(excess) > 0.05 * len(nll) and excess**2 > 64 * float(variance.sum()):
        raise CheckError(
            f"the model does not draw what it says: drawn tokens have {float(nll.mean()):.3f} nats "
            f"each where its own forward pass expects {float(entropy.mean()):.3f}, so that its "
            "generate() in transformers differs from its forward pass; update transformers, or "
            "give texts, of which nothing is drawn"
        )
