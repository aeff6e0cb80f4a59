"""Recipes from plain values, as YAML gives them, each checked against the type of its field."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache, reduce
from operator import or_
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from freezetrain.errors import UserError, near_misses
from freezetrain.recipe.check import shown
from freezetrain.recipe.text_types import (
    FieldsOf,
    NameText,
    OneOrMore,
    PathText,
    WordOrList,
    check_text,
    expanded,
)

_INT64 = range(-(2**63), 2**63)

Recipe = TypeVar("Recipe")


def build(kind: type[Recipe], values: Mapping[str, Any], where: str) -> Recipe:
    """The recipe ``kind`` of plain ``values``.

    ``where``: what the values are, for messages. Raises UserError, one sentence that begins with
    it, for an unknown field, a value of another type, or one that the recipe refuses.
    """
    return _construct_named(where, kind, check_types(kind, values, where), None)


def change(recipe: Recipe, changes: Mapping[str, Any], where: str) -> Recipe:
    """``recipe`` with the fields that ``changes`` names, group by group, set to its values.

    What is not named is shared with ``recipe``. Raises UserError as :func:`build`.
    """
    kind = type(recipe)
    return _construct_named(where, kind, check_types(kind, changes, where), recipe)


def _construct_named(
    where: str, kind: type[Recipe], values: Mapping[str, Any], base: Recipe | None
) -> Recipe:
    try:
        return construct(kind, values, base)
    except UserError as error:
        raise _refusal(where, str(error)) from error


def _refusal(where: str, complaint: str) -> UserError:
    return UserError(f"{where}: {complaint}" if where else complaint)


def check_types(
    kind: type,
    values: Mapping[str, Any],
    where: str = "",
    prefix: str = "",
    expand: bool = False,
) -> dict[str, Any]:
    """``values`` of some or all fields of the recipe ``kind``; groups of fields stay mappings.

    Whole numbers of a float field become floats. ``prefix`` stands before the names of fields in
    messages, as in ``optimization.``. ``expand``: they are what a user wrote, so that ~ and
    $VARIABLES in paths are to be expanded, which happens once. Raises UserError for an unknown
    field, another type, a number beyond 64 bits or that is not finite, and for a text, a path or a
    name that cannot be one (:mod:`freezetrain.recipe.text_types`).
    """
    types = field_types(kind)
    for name in values:
        if name not in types:
            misses = near_misses(f"{prefix}{name}", field_names(kind, prefix))
            raise _refusal(where, f"unknown field '{prefix}{name}'{misses}")
    return {
        name: check_type(types[name], value, f"{prefix}{name}", where, expand)
        for name, value in values.items()
    }


def check_type(hint: Any, value: Any, name: str, where: str = "", expand: bool = False) -> Any:
    """``value`` of the field ``name``, whose type is ``hint``, as :func:`check_types`."""
    if value is None and allows_none(hint):
        return None
    mark = _mark(hint)
    if isinstance(mark, OneOrMore):
        hint, mark = (list[str] if isinstance(value, list) else str), None
    inner = plain_type(hint)
    if isinstance(mark, FieldsOf) and isinstance(value, Mapping):
        return check_types(mark.kind, value, where, f"{name}.", expand)
    kind, arguments = get_origin(inner) or inner, get_args(inner)
    if kind is Any:
        return _check_any(value, name, where)
    if is_dataclass(kind) and isinstance(value, Mapping):
        return check_types(kind, value, where, f"{name}.", expand)  # type: ignore[arg-type]
    if kind is Literal and value in arguments:
        return value
    if isinstance(mark, WordOrList) and isinstance(value, str):
        return [check_type(arguments[0], value, name, where)]
    if kind is list and isinstance(value, list):
        items = [
            check_type(arguments[0], item, f"{name}[{place}]", where, expand)
            for place, item in enumerate(value)
        ]
        if isinstance(_mark(arguments[0]), NameText):
            _check_distinct(items, name, where)
        return items
    if kind is dict and isinstance(value, Mapping):
        return {
            check_type(arguments[0], key, f"a name in {name}", where): check_type(
                arguments[1], item, f"{name}.{key}", where, expand
            )
            for key, item in value.items()
        }
    if kind in (Union, UnionType) and type(value) in arguments:
        return _number(value, name, where)
    if kind is float and type(value) is int:
        return _number(float(_number(value, name, where)), name, where)
    if type(value) is kind:
        return (
            _text(value, mark, name, where, expand) if kind is str else _number(value, name, where)
        )
    advice = ""
    if kind is str and isinstance(value, bool | int | float):
        advice = "; put it in quotes"
    if kind is Literal and isinstance(value, str):
        advice = near_misses(value, arguments)
    expected = _expected(kind, arguments)
    if isinstance(mark, WordOrList):
        expected = f"{_expected(Literal, get_args(arguments[0]))}, or a list of them"
    raise _refusal(where, f"{name}: expected {expected}, got {shown(value)}{advice}")


def _check_distinct(names: list[str], name: str, where: str) -> None:
    twice = [item for item, count in Counter(names).items() if count > 1]
    if twice:
        raise _refusal(where, f"{name}: expected each name once, got {shown(twice[0])} twice")


def _number(value: Any, name: str, where: str) -> Any:
    """``value``, which is a number, or a truth value; no recipe has a use for NaN and infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        raise _refusal(where, f"{name}: expected a finite number, got {value}; give another")
    if type(value) is int and value not in _INT64:
        raise _refusal(where, f"{name}: expected a number of at most 64 bits; give a smaller one")
    return value


def _text(text: str, mark: Any, name: str, where: str, expand: bool) -> str:
    try:
        if expand and isinstance(mark, PathText):
            return expanded(text)
        (check_text if mark is None else mark.check)(text)
    except UserError as error:
        raise _refusal(where, f"{name}: {error}") from error
    return text


def _check_any(value: Any, name: str, where: str) -> Any:
    """``value`` as YAML has them: the recipe leaves its type to others, but not its bounds."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_type(str, key, f"a name in {name}", where)
            _check_any(item, f"{name}.{key}", where)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _check_any(item, f"{name}[{place}]", where)
    elif isinstance(value, str):
        _text(value, None, name, where, False)
    elif not isinstance(value, bool | int | float | None):
        raise _refusal(where, f"{name}: expected a value of JSON, got {shown(value)}")
    else:
        _number(value, name, where)
    return value


def _expected(kind: Any, arguments: tuple[Any, ...]) -> str:
    if kind is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if kind is list:
        return "a list, as [a, b]"
    if kind in (Union, UnionType):
        return " or ".join(argument.__name__ for argument in arguments)
    if kind is dict or is_dataclass(kind):
        return "a group of fields, as {name: value}"
    return kind.__name__


def construct(
    kind: type[Recipe],
    values: Mapping[str, Any],
    base: Recipe | None = None,
    prefix: str = "",
) -> Recipe:
    """The recipe of values that :func:`check_types` gave, or ``base`` with these values changed.

    Raises UserError for a field that must be given and is not, and what the recipe itself raises.
    """
    types = field_types(kind)  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for item in fields(kind):  # type: ignore[arg-type]
        name, hint = f"{prefix}{item.name}", plain_type(types[item.name])
        required = base is None and item.default is item.default_factory is MISSING
        if item.name in values or (required and is_dataclass(hint)):
            value = values.get(item.name, {})
            given[item.name] = _constructed(hint, value, getattr(base, item.name, None), name)
        elif required:
            raise UserError(f"missing {name}: give it on the command line or in a recipe")
    return kind(**given) if base is None else replace(base, **given)  # type: ignore[type-var]


def _constructed(hint: Any, value: Any, base: Any, name: str) -> Any:
    if is_dataclass(hint) and value is not None:
        return construct(hint, value, base, f"{name}.")  # type: ignore[arg-type]
    part = (get_args(plain_type(hint)) or (None,))[-1]  # the type of the items of a list or a dict
    if is_dataclass(part) and isinstance(value, list):
        return [
            construct(part, item, prefix=f"{name}[{place}].")  # type: ignore[arg-type]
            for place, item in enumerate(value)
        ]
    if is_dataclass(part) and isinstance(value, dict):
        return {
            key: construct(part, item, prefix=f"{name}.{key}.")  # type: ignore[arg-type]
            for key, item in value.items()
        }
    return value


@cache
def field_types(kind: type) -> dict[str, Any]:
    """Name → type of each field of the recipe ``kind``."""
    hints = get_type_hints(kind, include_extras=True)
    return {item.name: hints[item.name] for item in fields(kind)}  # type: ignore[arg-type]


def plain_type(hint: Any) -> Any:
    """``X`` of ``X | None`` and of ``Annotated[X, ...]``; another type as it is."""
    hint = _without_none(hint)
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def fields_type(hint: Any) -> Any:
    """The recipe whose fields a mapping of the type ``hint`` has; None for another type."""
    mark = _mark(hint)
    return mark.kind if isinstance(mark, FieldsOf) else None


def allows_none(hint: Any) -> bool:
    """Whether it is ``X | None``."""
    return get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint)


def _without_none(hint: Any) -> Any:
    if not allows_none(hint):
        return hint
    return reduce(or_, (part for part in get_args(hint) if part is not NoneType))


def _mark(hint: Any) -> Any:
    """What a type is annotated with; None for a plain one."""
    hint = _without_none(hint)
    return get_args(hint)[1] if get_origin(hint) is Annotated else None


def field_names(kind: type, prefix: str = "") -> list[str]:
    """Dotted names of all fields of a recipe, those of its groups too."""
    names = []
    for name, hint in field_types(kind).items():
        names.append(f"{prefix}{name}")
        if is_dataclass(group := plain_type(hint)):
            names += field_names(group, f"{prefix}{name}.")  # type: ignore[arg-type]
    return names
