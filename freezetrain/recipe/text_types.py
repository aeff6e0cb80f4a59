"""Types of a recipe's texts: paths, in which ~ and $VARIABLES are expanded once, and names."""

import os
import re
import unicodedata
from dataclasses import dataclass
from typing import Annotated

from freezetrain.errors import UserError, near_misses
from freezetrain.recipe.check import shown

_LONGEST_PATH = 4095  # bytes, as Linux takes them

_LONGEST_PART = 255  # bytes of a file's name, on nearly every file system

_LONGEST_NAME = 200  # bytes: endings, and what unfinished files are called, need the rest

_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([^}]*)\})")


@dataclass(frozen=True)
class PathText:
    """Marks the type of a text that is a path."""

    def check(self, text: str) -> None:
        check_path(text)


@dataclass(frozen=True)
class NameText:
    """Marks the type of a text that becomes the name of a file."""

    def check(self, text: str) -> None:
        check_name(text)


@dataclass(frozen=True)
class FieldsOf:
    """Marks a mapping of some fields of another recipe, checked and expanded as that one's are."""

    kind: type


@dataclass(frozen=True)
class OneOrMore:
    """Marks the type of a text that may also be a list of texts."""


@dataclass(frozen=True)
class WordOrList:
    """Marks a list of words, one of which may be given by itself, without brackets."""


LocalPath = Annotated[str, PathText()]
"""A file or a folder; or an id on the hub, where the field says so."""

Name = Annotated[str, NameText()]
"""A language, a region or a variant."""

Fields = Annotated[str | list[str], OneOrMore()]
"""A field of a data set, or several."""


def check_text(text: str, lines: bool = True) -> None:
    """UserError for what no text can hold: control characters, and what is not UTF-8.

    ``lines``: tabs and line breaks are allowed.
    """
    for place, sign in enumerate(text):
        category = unicodedata.category(sign)
        if category == "Cs":
            raise UserError(f"expected text in UTF-8, got {shown(text)}; rename it, or convert it")
        allowed = lines and sign in "\t\n\r"
        if category in ("Cc", "Zl", "Zp") and not allowed:
            raise UserError(
                f"expected text without control characters, got {sign!r} at character "
                f"{place + 1} of {shown(text)}; leave it out"
            )


def check_path(text: str) -> None:
    """UserError for a path that no file can have."""
    check_text(text, lines=False)
    if not text:
        raise UserError("expected a path, got an empty text; give one, or leave it out")
    parts = re.split(r"[/\\]" if os.name == "nt" else "/", text)
    for what, part, most in (
        ("path", text, _LONGEST_PATH),
        ("file name", max(parts, key=_size), _LONGEST_PART),
    ):
        if _size(part) > most:
            raise UserError(
                f"expected a {what} of at most {most} bytes, got {_size(part)} in {shown(part)}; "
                "give a shorter one"
            )


def check_name(text: str) -> None:
    """UserError for a name that cannot be part of a file's name."""
    check_text(text, lines=False)
    if text.strip() in ("", ".", "..") or "/" in text or "\\" in text:
        raise UserError(
            f"expected a name that a file can bear, without / and \\, got {shown(text)}; give "
            "another name"
        )
    if _size(text) > _LONGEST_NAME:
        raise UserError(
            f"expected a name of at most {_LONGEST_NAME} bytes, got {_size(text)} in "
            f"{shown(text)}; give a shorter one"
        )


def expanded(path: str) -> str:
    """``path`` with a ~ at its beginning, and $NAME and ${NAME}, replaced, once.

    UserError for a user or a variable that is not there, and for what is no path afterwards.
    """
    check_path(path)
    if path.startswith("~"):
        user, slash, rest = path.partition("/")
        folder = os.path.expanduser(user)
        if folder == user:
            who = f"no user is called {user[1:]!r}" if user[1:] else "HOME is not set"
            raise UserError(
                f"cannot expand {path!r}: {who}; write ./{user} for a file of that name"
            )
        # What the home's path holds is no variable.
        return _checked(folder + slash + _with_variables(rest, path))
    return _checked(_with_variables(path, path))


def _with_variables(text: str, path: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] if match[1] is not None else match[2]
        if not os.environ.get(name):
            raise UserError(
                f"cannot expand {path!r}: the variable {name!r} is not set, or empty"
                f"{near_misses(name, os.environ)}; set it, or write out the path"
            )
        return os.environ[name]

    return _VARIABLE.sub(value, text)


def _checked(path: str) -> str:
    check_path(path)
    return path


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
