"""A model with each of several regions changed, one at a time: its figures, and what it says."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from freezetrain.errors import CheckError, UserError
from freezetrain.evaluation import Document, Figures, encode_documents, evaluate
from freezetrain.measuring.held_out import window_length
from freezetrain.models import context_length
from freezetrain.progress import progress_bar
from freezetrain.ranks import is_first_rank
from freezetrain.recipe.sources import EvaluationTexts
from freezetrain.regions import Region, ablate

LanguageFigures = dict[str, Figures]


def each_alone(
    model: PreTrainedModel,
    documents: dict[str, list[Document]],
    evaluation: EvaluationTexts,
    regions: Iterable[tuple[str, Region]],
    *,
    number: int,
    what: str,
    change: Callable[[PreTrainedModel, Region], AbstractContextManager[None]] = ablate,
    during: Callable[[str], None] | None = None,
) -> dict[str, LanguageFigures]:
    """Name of a region -> figures of every language while it alone is changed.

    ``regions`` is gone through once, so that each may be made when its turn comes; ``number`` of
    them are known beforehand, for the one progress bar, named ``what``. An empty region stands for
    the model as it is. ``during(name)`` is called while the region is changed.
    """
    found = {}
    with progress_bar(what, is_first_rank()) as progress:
        for turn, (name, region) in enumerate(regions):

            def in_all(done: int, total: int, turn: int = turn) -> None:
                place = f" ({turn + 1} of {number})" if number > 1 else ""
                progress(turn * total + done, number * total, what + place)

            with change(model, region):
                try:
                    found[name] = evaluate(
                        model,
                        documents,
                        max_length=window_length(evaluation, model),
                        overlap=evaluation.overlap,
                        batch_tokens=evaluation.batch_tokens,
                        progress=in_all,
                    )
                except CheckError as error:
                    raise CheckError(f"{name}: {error}") from error
                if during is not None:
                    during(name)
    return found


def rises(before: Mapping[str, Figures], after: Mapping[str, Figures]) -> dict[str, float]:
    """Language -> rise of its NLL, in nats per byte."""
    return {
        language: figures.nll_per_byte - before[language].nll_per_byte
        for language, figures in after.items()
    }


def check_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    new_tokens: int,
) -> None:
    """UserError if a prompt and ``new_tokens`` after it are more than the model was built for."""
    for prompt, document in zip(prompts, encode_documents(prompts, tokenizer), strict=True):
        needed = len(document.ids) + new_tokens
        if needed > (context := context_length(model, otherwise=needed)):
            raise UserError(
                f"a prompt of {len(document.ids)} tokens and new_tokens {new_tokens} do not fit "
                f"into the model's {context} tokens; shorten the prompt {prompt[:40]!r}"
            )


@torch.no_grad()
def continuation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, new_tokens: int
) -> str:
    """The text that the model puts after ``prompt``, which is encoded as in evaluation.

    At each place the likeliest token, up to ``new_tokens`` of them or to an end of sequence. A
    plain loop, since ``model.generate`` follows settings of the model's folder (sampling,
    penalties), under which texts would differ by more than what was removed. It keeps no cache:
    every architecture can do without, and for so short a text that costs little.
    """
    (document,) = encode_documents([prompt], tokenizer)
    ids = torch.tensor([document.ids], device=model.device)
    new: list[int] = []
    while len(new) < new_tokens:
        token = model(input_ids=ids).logits[:, -1:].argmax(-1)
        if token.item() == tokenizer.eos_token_id:
            break
        new.append(int(token.item()))
        ids = torch.cat([ids, token], dim=1)
    return cast(str, tokenizer.decode(new, skip_special_tokens=True))
