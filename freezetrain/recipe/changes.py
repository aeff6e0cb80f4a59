"""Recipes from plain values, and recipes with some fields changed."""

import copy
import json
from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, get_type_hints

from freezetrain.errors import UserError, near_misses
from freezetrain.recipe.complaint import field_names, one_sentence

Recipe = TypeVar("Recipe")


def built(kind: type[Recipe], values: Mapping[str, Any], where: str) -> Recipe:
    """The recipe ``kind`` of plain ``values``, as YAML gives them, checked as the command line's.

    ``where``: what the values are, for messages. Raises UserError, one sentence that begins with
    it, for an unknown field, a value of another type, or one that the recipe refuses.
    """
    _check_names(kind, values, where)
    # Parsing takes its time, and a comparison asks for the same ones again and again.
    return copy.deepcopy(_parsed(kind, json.dumps(values), where))  # type: ignore[arg-type]


def changed(recipe: Recipe, changes: Mapping[str, Any], where: str) -> Recipe:
    """``recipe`` with the fields that ``changes`` names, group by group, set to its values.

    Raises UserError as :func:`built`.
    """
    assert is_dataclass(recipe)
    assert not isinstance(recipe, type)
    _check_names(type(recipe), changes, where)
    return built(type(recipe), _merged(asdict(recipe), changes), where)


@cache
def _parsed(kind: type, values: str, where: str) -> Any:
    parser = _parser(kind)
    try:
        told = parser.instantiate(parser.parse_object(json.loads(values)))
        return kind(**{item.name: told[item.name] for item in fields(kind)})
    except (ArgumentError, ValueError, TypeError, UserError) as error:
        raise UserError(f"{where}: {one_sentence(error, [where], kind)}") from error


@cache
def _parser(kind: type) -> Any:
    from jsonargparse import ArgumentParser  # slow to import, and most jobs do without

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    return parser


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, value in changes.items():
        earlier = merged.get(name)
        both = isinstance(earlier, Mapping) and isinstance(value, Mapping)
        merged[name] = _merged(earlier, value) if both else value  # type: ignore[arg-type]
    return merged


def _check_names(kind: Any, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
    """UserError, with near misses, for the first name that is no field of ``kind``."""
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            known = field_names(kind, prefix)
            full = f"{prefix}{name}"
            raise UserError(f"{where}: unknown field {full!r}{near_misses(full, known)}")
        groups = [part for part in _parts(hints[name]) if is_dataclass(part)]
        if groups and isinstance(value, Mapping):
            _check_names(groups[0], value, where, f"{prefix}{name}.")


def _parts(hint: Any) -> tuple[Any, ...]:
    """The types that a field may have."""
    return getattr(hint, "__args__", None) or (hint,)
