"""Dataclasses to plain values for JSON, and back."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

KEY = "json"
"""In the metadata of a field: its key in JSON, where that is no name in Python."""


def to_json(value: Any) -> Any:
    """``value`` as dicts, lists and plain values; what has ``to_dict`` is asked for it.

    An infinite number becomes None, as JSON has none.
    """
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return {_key(item): to_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return None if isinstance(value, float) and math.isinf(value) else value


def from_json(hint: Any, content: Any) -> Any:
    """The inverse of :func:`to_json`, for a type ``hint`` of dataclasses, lists, dicts, None.

    Raises KeyError, TypeError, AttributeError or ValueError for content of another type.
    """
    if get_origin(hint) in (Union, UnionType):
        if content is None:
            return None
        (hint,) = (part for part in get_args(hint) if part is not NoneType)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is list:
        return [from_json(arguments[0], item) for item in content]
    if origin is dict:
        key_kind, item_kind = arguments
        return {key_kind(key): from_json(item_kind, item) for key, item in content.items()}
    if hasattr(hint, "from_dict"):
        return hint.from_dict(content)
    if is_dataclass(hint):
        types = _types(hint)  # type: ignore[arg-type]
        given = {item.name: _key(item) for item in fields(hint) if _key(item) in content}
        return hint(**{name: from_json(types[name], content[key]) for name, key in given.items()})  # type: ignore[operator]
    return content


def require_types(value: Any, hint: Any, name: str) -> None:
    """ValueError, which says where, for what a type ``hint`` does not allow in ``value``.

    Fields of dataclasses, items of lists, dicts and tuples are looked at. A whole number does for a
    float. Numbers are finite and within 64 bits.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return
        (hint,) = (part for part in arguments if part is not NoneType)
        require_types(value, hint, name)
        return
    expected = origin or hint
    if expected is Literal:
        if value not in arguments:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, arguments))}")
        return
    plain = (int, float) if expected is float else expected
    if not isinstance(value, plain) or (isinstance(value, bool) and expected is not bool):
        raise ValueError(f"{name} must be of type {expected.__name__}, got {value!r}")
    if isinstance(value, int | float) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must be a finite number within 64 bits, got {value!r}")
    if is_dataclass(value):
        types = _types(type(value))  # type: ignore[arg-type]
        for item in fields(value):
            require_types(getattr(value, item.name), types[item.name], f"{name}.{item.name}")
    elif isinstance(value, Mapping) and arguments:
        for key, item in value.items():
            require_types(key, arguments[0], f"the keys of {name}")
            require_types(item, arguments[1], f"{name}.{key}")
    elif isinstance(value, list | tuple) and arguments:
        kinds = [arguments[0]] * len(value) if isinstance(value, list) else arguments
        if len(kinds) != len(value):
            raise ValueError(f"{name} must have {len(kinds)} items, got {len(value)}")
        for number, (item, kind) in enumerate(zip(value, kinds, strict=True), start=1):
            require_types(item, kind, f"{name}.{number}")


def _key(item: Any) -> str:
    return item.metadata.get(KEY, item.name)


@cache
def _types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
