"""Recipes from plain values, as YAML gives them, each checked against the type of its field."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from freezetrain.errors import UserError, near_misses

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
    kind: type, values: Mapping[str, Any], where: str = "", prefix: str = ""
) -> dict[str, Any]:
    """``values`` of some or all fields of the recipe ``kind``; groups of fields stay mappings.

    Whole numbers of a float field become floats. ``prefix`` stands before the names of fields in
    messages, as in ``optimization.``. Raises UserError for an unknown field or another type.
    """
    types = field_types(kind)
    for name in values:
        if name not in types:
            misses = near_misses(f"{prefix}{name}", field_names(kind, prefix))
            raise _refusal(where, f"unknown field '{prefix}{name}'{misses}")
    return {
        name: check_type(types[name], value, f"{prefix}{name}", where)
        for name, value in values.items()
    }


def check_type(hint: Any, value: Any, name: str, where: str = "") -> Any:
    """``value`` of the field ``name``, whose type is ``hint``, as :func:`check_types`."""
    inner = without_none(hint)
    kind, arguments = get_origin(inner) or inner, get_args(inner)
    if kind is Any or (value is None and inner is not hint):
        return value
    if is_dataclass(kind) and isinstance(value, Mapping):
        return check_types(kind, value, where, f"{name}.")  # type: ignore[arg-type]
    if kind is Literal and value in arguments:
        return value
    if kind is list and isinstance(value, list):
        return [
            check_type(arguments[0], item, f"{name}[{place}]", where)
            for place, item in enumerate(value)
        ]
    if kind is dict and isinstance(value, Mapping):
        return {
            check_type(arguments[0], key, f"a name in {name}", where): check_type(
                arguments[1], item, f"{name}.{key}", where
            )
            for key, item in value.items()
        }
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind:
        return value
    advice = "; put it in quotes" if kind is str else ""
    if kind is Literal:
        advice = near_misses(str(value), arguments)
    raise _refusal(where, f"{name}: expected {_expected(kind, arguments)}, got {value!r}{advice}")


def _expected(kind: Any, arguments: tuple[Any, ...]) -> str:
    if kind is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if kind is list:
        return "a list, as [a, b]"
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
        name, hint = f"{prefix}{item.name}", without_none(types[item.name])
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
    part = (get_args(hint) or (None,))[-1]  # the type of the items of a list or a dict
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
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind)}  # type: ignore[arg-type]


def without_none(hint: Any) -> Any:
    """``X`` of ``X | None``; another type as it is."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    (inner,) = (part for part in get_args(hint) if part is not NoneType)
    return inner


def field_names(kind: type, prefix: str = "") -> list[str]:
    """Dotted names of all fields of a recipe, those of its groups too."""
    names = []
    for name, hint in field_types(kind).items():
        names.append(f"{prefix}{name}")
        if is_dataclass(group := without_none(hint)):
            names += field_names(group, f"{prefix}{name}.")  # type: ignore[arg-type]
    return names
