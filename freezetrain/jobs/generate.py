"""What a model says: the likeliest text after a prompt."""

from collections.abc import Sequence
from typing import cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from freezetrain.errors import UserError
from freezetrain.evaluation import encode_documents
from freezetrain.models import context_length


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
