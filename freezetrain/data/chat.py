"""Conversations as a tokenizer's chat template writes them, and their token ids."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from freezetrain.errors import UserError
from freezetrain.recipe.sources import TextSource
from freezetrain.user_files import reason

_CUT = "\ufdd0"
"""Stands, in a written conversation, within what a message says where that spells a special token.
It is no character: Unicode keeps it for uses within a program."""

_TODAY = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"
"""Before a template that writes today's date, so that a conversation is the same tomorrow."""


def written(source: TextSource, tokenizer: PreTrainedTokenizerBase) -> Callable[[str], str]:
    """What makes the text to be tokenized of one that was read: the same, but for conversations.

    Raises UserError where the tokenizer has no chat template and one is needed; what it gives
    raises one for a conversation that the template refuses.
    """
    if source.messages_field is None:
        return str
    template = chat_template(tokenizer)
    if "strftime_now" in template:
        template = _TODAY + template
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    longest_first = sorted((token for token in special if len(token) > 1), key=len, reverse=True)
    spelled = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def cut(value: Any) -> Any:
        if isinstance(value, str):
            whole = value.replace(_CUT, "")
            return spelled.sub(lambda found: found[0][0] + _CUT + found[0][1:], whole)
        if isinstance(value, dict):
            return {name: cut(part) for name, part in value.items()}
        return [cut(part) for part in value] if isinstance(value, list) else value

    def write(conversation: str) -> str:
        try:
            messages = cut(json.loads(conversation))
            return cast(
                str,
                tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False),
            )
        except Exception as error:  # whatever a template runs into
            raise UserError(
                f"the tokenizer's chat template does not take this conversation: {reason(error)}; "
                "leave it out, or take the tokenizer of a model that was made for such ones"
            ) from error

    return write


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template that conversations are written by; UserError where there is none."""
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise UserError(
            "the tokenizer has no chat template, by which messages_field is read; put the "
            "chat_template.jinja of a model whose conversations look as yours should beside the "
            "base's tokenizer, or give texts with a text_field"
        ) from error


def without_cuts(text: str) -> str:
    """A written conversation as people read it."""
    return text.replace(_CUT, "")


def conversation_ids(
    conversations: Iterable[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[int]]:
    """Token ids of each conversation that :func:`written` wrote, and of nothing else.

    Special tokens are those of the template: what a message says gets the tokens of its spelling.
    """
    for conversation in conversations:
        parts = tokenizer(
            conversation.split(_CUT),
            add_special_tokens=False,
            split_special_tokens=False,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        yield [token for ids in cast(list[list[int]], parts) for token in ids]
