"""What of an item is its document: a field by its path, several joined, or a conversation."""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from datasets import Features, Value

from freezetrain.errors import UserError, near_misses
from freezetrain.recipe.sources import TextSource

FEATURES = Features({"text": Value("large_string"), "key": Value("uint32"), "kind": Value("uint8")})
"""What is read of a document: its text, the CRC-32 of its key, which decides the split, and its
kind: GOOD, BLANK (white space alone) or BAD (skipped, its text may be null). The text of a
conversation is its messages as JSON: ``[{"role": ..., "content": ...}]``."""

GOOD, BLANK, BAD = 0, 1, 2

_ROLES = {"human": "user", "gpt": "assistant"}  # as ShareGPT calls them

_BETWEEN = "\n\n"  # texts that are joined

_NAMED = 50  # fields of an item, in a message


_ANYWAY = "repair it, or skip such lines with bad_lines: skip"


class _FaultError(Exception):
    """What is wrong with an item, as the end of a sentence that begins with its place."""

    def __init__(self, what: str, remedy: str = _ANYWAY) -> None:
        super().__init__(what)
        self.remedy = remedy


def document(item: Any, place: str, source: TextSource) -> dict[str, Any]:
    """The row (FEATURES) of ``item``: a mapping of fields, or the Exception that parsing it gave.

    Raises UserError, with ``place``, where it is bad and ``source.bad_lines`` is stop.
    """
    try:
        text, key = _text_and_key(item, source)
    except _FaultError as fault:
        if source.bad_lines == "stop":
            raise UserError(f"{place} {fault}; {fault.remedy}") from None
        return {"text": None, "key": 0, "kind": BAD}
    return {"text": text, "key": zlib.crc32(key), "kind": GOOD if text.strip() else BLANK}


def _text_and_key(item: Any, source: TextSource) -> tuple[str, bytes]:
    if isinstance(item, Exception):
        raise _FaultError(f"is no JSON: {item}")
    if not isinstance(item, dict):
        raise _FaultError(f"is no JSON object but has type {type(item).__name__}")
    names = source.document_fields
    values = [_at(item, name) for name in names]
    key = None if source.key_field is None else _at(item, source.key_field)
    separator = _BETWEEN if source.text_separator is None else source.text_separator
    if source.messages_field is not None:
        text = _conversation(values[0], names[0])
    elif len(names) == 1:
        text = _text(values[0], names[0], separator)
    else:  # one that is null or blank is left out
        pairs = zip(values, names, strict=True)
        given = [_text(value, name, separator) for value, name in pairs if value is not None]
        text = separator.join(part for part in given if part.strip())
    if source.key_field is not None and key is None:
        raise _FaultError(f"is bad: expected a key in field {source.key_field!r}, got null")
    if source.key_field is not None and isinstance(key, Mapping):
        raise _object(key, source.key_field, "key_field", "key", _is_key)
    encoded = _encoded(text, " ".join(names))
    return text, encoded if source.key_field is None else _encoded(str(key), source.key_field)


def _encoded(text: str, field: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise _FaultError(
            f"is bad: its field {field!r} is no valid Unicode: {error.reason}"
        ) from None


def _at(item: Mapping[str, Any], path: str) -> Any:
    """The value of a field: of that very name, else of the names between its dots."""
    if path in item:
        return item[path]
    value: Any = item
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise _FaultError(f"has no field {missing_field(path, item)}")
        value = value[name]
    return value


def missing_field(path: str, fields: Mapping[str, Any], where: str = "") -> str:
    """``path`` with near misses, and the fields that there are, as the end of a sentence."""
    known = list(islice(_paths(fields), _NAMED))
    inside = f" in {where!r}" if where else ""
    return f"{path!r}{inside}{near_misses(path, known)}; its fields are {' '.join(known)}"


def _paths(fields: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Dotted paths of all fields, of an item or of the Features of a data set."""
    for name, value in fields.items():
        if isinstance(value, Mapping) and value:
            yield from _paths(value, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def _object(
    value: Mapping[str, Any], field: str, option: str, wanted: str, fits: Callable[[Any], bool]
) -> _FaultError:
    """The fault of a field that holds an object, with the paths in it to what ``fits``."""
    leaves = list(islice(_paths(value), _NAMED))
    named = f"an object with the fields {' '.join(leaves)}" if leaves else "an empty object"
    paths = [f"{field}.{leaf}" for leaf in leaves if fits(_at(value, leaf))]
    remedy = f"give {option} the path to another field, or {_ANYWAY}"
    if paths:
        remedy = f"give {option} the path to its {wanted}: {' or '.join(paths)}"
    return _FaultError(f"is bad: expected a {wanted} in field {field!r}, got {named}", remedy)


def _is_text(value: Any) -> bool:
    parts = value if isinstance(value, list) else [value]
    return bool(parts) and all(isinstance(part, str) for part in parts)


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, Mapping) for part in value)


def _is_key(value: Any) -> bool:
    return isinstance(value, str | int)


def _text(value: Any, field: str, separator: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        raise _object(value, field, "text_field", "text", _is_text)
    if not isinstance(value, list):
        raise _FaultError(
            f"is bad: expected a string in field {field!r}, got {type(value).__name__}"
        )
    for part in value:
        if isinstance(part, Mapping):
            is_message = "role" in part or "from" in part
            raise _FaultError(
                f"is bad: expected strings in the list of field {field!r}, got objects with the "
                f"fields {' '.join(islice(part, _NAMED))}",
                f"give a conversation as messages_field: {field}" if is_message else _ANYWAY,
            )
        if not isinstance(part, str):
            raise _FaultError(
                f"is bad: expected strings in the list of field {field!r}, got "
                f"{type(part).__name__}"
            )
    return separator.join(part for part in value if part.strip())


def _conversation(value: Any, field: str) -> str:
    """Messages as JSON with roles as chat templates know them; "" where none says anything."""
    if isinstance(value, Mapping):
        raise _object(value, field, "messages_field", "list of messages", _is_messages)
    if not isinstance(value, list):
        raise _FaultError(
            f"is bad: expected a list of messages in field {field!r}, got {type(value).__name__}"
        )
    messages = [_message(message, field, number) for number, message in enumerate(value, 1)]
    if not any(str(message.get("content") or "").strip() for message in messages):
        return ""
    return json.dumps(messages, ensure_ascii=False)


def _message(message: Any, field: str, number: int) -> dict[str, Any]:
    where = f"message {number} of field {field!r}"
    if not isinstance(message, dict):
        raise _FaultError(f"is bad: {where} is no object but has type {type(message).__name__}")
    # Where a data set is stored in columns, a message has null in all fields of others.
    given = {name: part for name, part in message.items() if part is not None}
    if "from" in given and "role" not in given:
        role, content = given.pop("from"), given.pop("value", None)
        given = {"role": _ROLES.get(role, role) if isinstance(role, str) else role} | given
        if content is not None:
            given["content"] = content
    if not isinstance(given.get("role"), str):
        raise _FaultError(
            f"is bad: {where} has no role; expected role and content, or from and value, and its "
            f"fields are {' '.join(message)}"
        )
    content = given.get("content")
    if isinstance(content, list):
        content = given["content"] = _parts(content, where)
    if not isinstance(content, str) and (content is not None or "tool_calls" not in given):
        raise _FaultError(
            f"is bad: expected a text as the content of {where}, got "
            f"{'none' if content is None else type(content).__name__}"
        )
    return given


def _parts(content: Sequence[Any], where: str) -> str:
    """The text of a message in parts: ``[{"type": "text", "text": ...}]``."""
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise _FaultError(f"is bad: {where} has a part that is no text")
    return "".join(map(str, texts))
