"""``generate`` of transformers by our own settings, checked against the model's forward pass."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from freezetrain.errors import CheckError, UserError
from freezetrain.forward import accepted, without_cache
from freezetrain.generation.cache import roomy_cache

NOT_FINITE = (
    "the model's logits are not finite; give model.dtype float32 or bfloat16, or a sound model"
)


def require_generate(model: PreTrainedModel, otherwise: str) -> None:
    """UserError for a model that transformers cannot have generate; it may be on the meta device.

    ``otherwise``: what else a user can do, as ``"leave generation out"``.
    """
    if not model.can_generate():
        raise UserError(
            f"{type(model).__name__} has no generate() of transformers to go on from tokens with; "
            f"give a model that has, or {otherwise}"
        )


def end_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[int]:
    """Tokens that end a sequence: the tokenizer's EOS, else those of the model's configuration."""
    if tokenizer.eos_token_id is not None:
        return [int(tokenizer.eos_token_id)]
    ids = getattr(model.config.get_text_config(), "eos_token_id", None)
    return [ids] if isinstance(ids, int) else list(ids or [])


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    given: Tensor,
    length: int,
    ends: Sequence[int],
    cache: bool,
    *,
    returned: Sequence[str] = (),
    **more: Any,
) -> Any:
    """Rows that go on from ``given`` [n, G] with the likeliest token each time: [n, L] int64.

    L is ``length``, or less where all rows come to one of ``ends`` before; what follows that is
    filled up. Nothing of the settings in the model's folder (sampling, penalties) has a say.
    ``cache``: keep what was computed of earlier tokens. ``returned``: what to give besides, as
    ``generate`` names it. ``more``: for it.
    """
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_length=length,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else 0,
        use_cache=cache,
        return_dict_in_generate=bool(returned),
        **dict.fromkeys(returned, True),
    )
    given = given.to(model.device)
    # Given for all, or it would be guessed from tokens that are as those of padding.
    more |= accepted(model, {"attention_mask": torch.ones_like(given)})
    if cache and (roomy := roomy_cache(model, length)) is not None:
        more["past_key_values"] = roomy
    own, of_transformers = model.generation_config, model.generate
    # It fills what its configuration leaves open from the model's own.
    model.generation_config = config
    try:
        return cast(Any, of_transformers)(
            input_ids=given, generation_config=config, synced_gpus=False, **more
        )
    finally:
        model.generation_config = own


def cut_at_end(row: Tensor, given: int, ends: Sequence[int]) -> Tensor:
    """Without what stands after the first of ``ends`` that came after ``given`` tokens."""
    ended = torch.isin(row[given:], torch.tensor(ends, dtype=row.dtype)).nonzero()
    return row[: given + int(ended[0]) + 1] if len(ended) else row


_TRIED = 4  # sequences in which generation is compared with the forward pass

_TRIED_TOKENS = 8


@torch.no_grad()
def cache_works(model: PreTrainedModel, given: Tensor, length: int, otherwise: str) -> bool:
    """Whether ``model`` generates with its cache what its forward pass says; else it does without.

    A few tokens after the first of ``given`` are compared, up to ``length`` in all. CheckError
    where neither holds, as of a model that is not causal, and where its logits are not finite;
    ``otherwise``: what else a user can do.
    """
    given = given[:_TRIED].to(model.device)
    if bool(logits_of(model, given).isnan().any()):
        raise CheckError(NOT_FINITE)
    length = min(length, given.shape[1] + _TRIED_TOKENS)
    why = "what it computes differs from the model's forward pass"
    for cache in (True, False):
        try:
            found = generate(model, given, length, [], cache, returned=("output_logits",))
        except Exception as error:  # whatever code of a model's own raises
            why = f"{type(error).__name__}: {error}"
            continue
        generated = torch.stack(found.logits, dim=1)
        said = logits_of(model, found.sequences)[:, given.shape[1] - 1 : -1]
        if float(_kl(said, generated).mean()) < 0.1:
            return cache
    raise CheckError(
        f"{type(model).__name__} cannot generate what it says by generate() of transformers "
        f"({why}); give a causal model, or update transformers, or {otherwise}"
    )


def _kl(said: Tensor, generated: Tensor) -> Tensor:
    """KL(said ‖ generated) of logits [..., V], nats; a token may have no probability."""
    said, generated = said.float().log_softmax(-1), generated.float().log_softmax(-1)
    return torch.where(said.isneginf(), 0.0, said.exp() * (said - generated)).sum(-1)


def logits_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits [B, L, V] for ``ids`` [B, L]."""
    mask = accepted(model, {"attention_mask": torch.ones_like(ids)})
    return cast(Tensor, model(input_ids=ids, **mask, **without_cache(model)).logits)
