"""The texts that a model puts after prompts, the likeliest token each time."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from freezetrain.errors import UserError
from freezetrain.evaluation import encode_documents
from freezetrain.forward import context_length
from freezetrain.generation.generate import (
    cache_works,
    cut_at_end,
    end_tokens,
    generate,
    require_generate,
)


def require_continuable(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    new_tokens: int,
    otherwise: str = "give no prompts",
) -> None:
    """UserError for a model that transformers cannot have go on from ``prompts``.

    Also if a prompt and ``new_tokens`` after it are more than it was built for. It may be without
    weights. ``otherwise``: what else a user can do.
    """
    if prompts:
        require_generate(model, otherwise)
    context = context_length(model)
    for prompt in prompts:
        given = len(_ids(prompt, tokenizer))
        if context is not None and given + new_tokens > context:
            raise UserError(
                f"a prompt of {given} tokens and new_tokens {new_tokens} do not fit into the "
                f"model's {context} tokens; shorten the prompt {prompt[:40]!r}"
            )


def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    new_tokens: int,
    *,
    batch: int = 8,
    cache: bool | None = None,
    otherwise: str = "give no prompts",
    during: Callable[[int], None] | None = None,
) -> list[str]:
    """The text that the model puts after each of ``prompts``, which are encoded as in evaluation.

    Up to ``new_tokens`` tokens or to an end of sequence. Prompts of as many tokens go together, at
    most ``batch`` at a time, so that no padding has a say. ``cache``: keep what was computed of
    earlier tokens; None: if the model then generates what its forward pass says. ``during`` is
    called with the number of prompts that are done.

    With ``cache`` None, raises CheckError for a model whose generation differs from its forward
    pass with and without it, or that gives nothing finite; ``otherwise``: what else a user can do.
    """
    given = [_ids(prompt, tokenizer) for prompt in prompts]
    ends = end_tokens(tokenizer, model)
    texts = [""] * len(prompts)
    done = 0
    for numbers in _of_one_length(given, batch):
        rows = torch.tensor([given[number] for number in numbers])
        start, length = rows.shape[1], rows.shape[1] + new_tokens
        if cache is None:
            cache = cache_works(model, rows, length, otherwise)
        for number, row in zip(
            numbers, generate(model, rows, length, ends, cache).cpu(), strict=True
        ):
            new = cut_at_end(row, start, ends)[start:].tolist()
            new = new[:-1] if new[-1:] and new[-1] in ends else new
            texts[number] = cast(str, tokenizer.decode(new, skip_special_tokens=True))
        done += len(numbers)
        if during is not None:
            during(done)
    return texts


def _of_one_length(given: Sequence[Sequence[int]], batch: int) -> Iterator[list[int]]:
    """Numbers of rows of as many tokens, at most ``batch`` at a time."""
    by_length = sorted(range(len(given)), key=lambda number: len(given[number]))
    for _, same in groupby(by_length, key=lambda number: len(given[number])):
        numbers = list(same)
        yield from (numbers[first : first + batch] for first in range(0, len(numbers), batch))


def _ids(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    (document,) = encode_documents([prompt], tokenizer)
    return document.ids
