"""The fields of a recipe as people read them: in the help of the command line, and as pages."""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin

from freezetrain.recipe.mapping import field_types, plain_type

# `--model X` reads better than `--model.path X`; in a recipe both are groups of fields.
SHORT = {"model": "path", "texts": "folder", "prompts": "folder"}


@dataclass(frozen=True)
class Field:
    """A field that has a value; one that has fields itself is a :class:`Group`."""

    name: str
    """Dotted, from the recipe on."""
    short: str | None
    """The group's name, where an option of that name means this field."""
    type: str
    default: str | None
    """As YAML; None where a value must be given."""
    doc: str


@dataclass(frozen=True)
class Group:
    """The recipe itself, or a group of its fields."""

    name: str
    """Dotted; empty for the recipe itself."""
    doc: str
    optional: bool
    """Left out unless it is given: null."""
    fields: tuple[Field, ...]


def groups(kind: type, items: bool = False) -> list[Group]:
    """The recipe ``kind``, then its groups, each followed by its own groups.

    ``items``: also the groups that a list or a mapping holds, as ``weights[N]`` and
    ``variants.NAME``.
    """
    return list(_groups(kind, "", "", False, items))


def _groups(kind: type, name: str, doc: str, optional: bool, items: bool) -> Iterator[Group]:
    docs, types = _field_docs(kind), field_types(kind)
    own: list[Field] = []
    inner: list[Group] = []
    for item in fields(kind):  # type: ignore[arg-type]
        whole, hint = f"{name}.{item.name}".lstrip("."), plain_type(types[item.name])
        if is_dataclass(hint):
            absent = item.default is None
            inner += _groups(hint, whole, docs[item.name], absent, items)  # type: ignore[arg-type]
            continue
        default = item.default_factory() if callable(item.default_factory) else item.default
        own.append(
            Field(
                whole,
                name if SHORT.get(name) == item.name else None,
                _type(hint),
                None if default is MISSING else _written(default),
                docs[item.name],
            )
        )
        part = (get_args(hint) or (None,))[-1]
        if items and is_dataclass(part):
            each = f"{whole}.NAME" if get_origin(hint) is dict else f"{whole}[N]"
            inner += _groups(part, each, docs[item.name], False, items)  # type: ignore[arg-type]
    yield Group(name, doc, optional, tuple(own))
    yield from inner


@cache
def _field_docs(kind: type) -> dict[str, str]:
    """Name of each field → the text that stands below it in the source."""
    docs: dict[str, str] = {}
    for parent in reversed(kind.__mro__[:-1]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(parent))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, text in pairwise(definition.body):
            match statement, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                    ast.Constant(value=str(doc))
                ):
                    docs[name] = " ".join(doc.split())
    return docs


def _type(hint: Any) -> str:
    hint = plain_type(hint)
    if get_origin(hint) is Literal:
        return f"{{{','.join(get_args(hint))}}}"
    if get_origin(hint) is list:
        return f"[{_type(get_args(hint)[0])},...]"
    if get_origin(hint) is dict:
        return "{NAME: VALUE,...}"
    if is_dataclass(hint):
        return "{FIELD: VALUE,...}"
    known = {
        bool: "{true,false}",
        bool | int: "{true,false,INT}",
        str: "TEXT",
        str | list[str]: "{TEXT,[TEXT,...]}",
    }
    return known.get(hint) or hint.__name__.upper()


def _written(default: Any) -> str:
    return default if isinstance(default, str) else json.dumps(default, default=asdict)
