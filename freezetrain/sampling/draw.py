"""Drawing sequences from a model with its own probabilities, and what it says at their places."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from freezetrain.errors import CheckError, UserError
from freezetrain.forward import accepted, without_cache
from freezetrain.rehearsal.dataset import Piece
from freezetrain.rehearsal.targets import Targets, top_targets

_LOGITS_AT_ONCE = 1 << 26  # of a forward pass: 256 MB in fp32


def require_drawing(model: PreTrainedModel) -> None:
    """UserError for a model that transformers cannot have draw; it may be on the meta device."""
    if not model.can_generate():
        raise UserError(
            f"{type(model).__name__} has no generate() of transformers to draw sequences with; "
            "give a model that has, or texts, of which nothing is drawn"
        )


def end_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[int]:
    """Tokens that end a sequence: the tokenizer's EOS, else those of the model's configuration."""
    if tokenizer.eos_token_id is not None:
        return [int(tokenizer.eos_token_id)]
    ids = getattr(model.config.get_text_config(), "eos_token_id", None)
    return [ids] if isinstance(ids, int) else list(ids or [])


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
    during: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Sequences that go on from ``given`` [n, G] int64, each of at most ``length`` tokens, int64.

    Each token is drawn from the softmax of the model's logits divided by ``temperature``, whatever
    its generation_config says. A sequence ends with the first of ``ends`` that is drawn, which it
    holds. ``seed`` decides the draws, and no other random state changes. ``during`` is called at
    each step with the number of tokens that the sequences have.
    """
    config: Any = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_length=length,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else 0,
    )
    given = given.to(model.device)
    generate: Any = model.generate
    with _drawing_as(model, config), _seeded(seed, model.device):
        generated = generate(
            input_ids=given,
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([_Watch(during)] if during else []),
            synced_gpus=False,
            # Given for all, or it would be guessed from tokens that are as those of padding.
            **accepted(model, {"attention_mask": torch.ones_like(given)}),
        )
    return [_cut(row, given.shape[1], ends) for row in generated.cpu()]


def _cut(row: Tensor, given: int, ends: Sequence[int]) -> Tensor:
    """Without what stands after the first drawn end."""
    ended = torch.isin(row[given:], torch.tensor(ends, dtype=row.dtype)).nonzero()
    return row[: given + int(ended[0]) + 1] if len(ended) else row


@contextmanager
def _drawing_as(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """``generate`` fills what a configuration leaves open from that of the model: there is none."""
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    on_gpu = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_gpu):
        torch.manual_seed(seed)
        yield


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

    A few sequences at a time, filled up at their ends, which those before do not see.
    """
    vocabulary = vocabulary_of(model)
    longest = max(map(len, sequences), default=1)
    rows = max(1, _LOGITS_AT_ONCE // (longest * vocabulary))
    parts = []
    for first in range(0, len(sequences), rows):
        some = sequences[first : first + rows]
        ids = torch.nn.utils.rnn.pad_sequence(list(some), batch_first=True).to(model.device)
        mask = accepted(model, {"attention_mask": torch.ones_like(ids)})
        logits = model(input_ids=ids, **mask, **without_cache(model)).logits
        for row, sequence in zip(logits, some, strict=True):
            found = top_targets(row[: len(sequence)], k)
            parts.append([found.tokens.cpu(), found.log_probs.cpu(), found.rest.cpu()])
    return Targets(*(torch.cat(part) for part in zip(*parts, strict=True)))


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
