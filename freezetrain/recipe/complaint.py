"""What the parser complains of, as one sentence."""

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from freezetrain.errors import UserError, near_misses


def field_names(kind: Any, prefix: str = "") -> list[str]:
    """Dotted names of all fields of a recipe."""
    names = []
    hints = get_type_hints(kind)
    for item in fields(kind):
        names.append(prefix + item.name)
        for part in getattr(hints[item.name], "__args__", (hints[item.name],)):
            if is_dataclass(part):
                names += field_names(part, f"{prefix}{item.name}.")
    return names


def one_sentence(error: BaseException, arguments: Sequence[str], recipe: type) -> str:
    """Say what was expected, what arrived and what to do, with near misses of unknown names.

    ``arguments`` are the command line, verb first; ``recipe`` is the verb's dataclass.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    message = " ".join(str(error).split())
    verb = arguments[0]
    if message.startswith("Problems parsing config"):
        recipes = [word for word in arguments[1:] if Path(word).suffix in (".yaml", ".yml")]
        return f"cannot read the recipe {' '.join(recipes)}: {message.partition(': ')[2]}"
    # A group of fields that may be None, such as replay: what its own parser says.
    group = re.match(
        r"Parser key \"(\w+)\": Does not validate .*? Problem with given class_path '.*?': (.*?)"
        r" - Expected a <class 'NoneType'>",
        message,
    )
    if group:
        name, message = group.groups()
        message = re.sub(r'^Parser key "', f'Parser key "{name}.', message)
        message = re.sub(r"^(?:Option '|unrecognized arguments: --)", f"option '{name}.", message)
    if missing := re.search(r"arguments are required: (.+)", message):
        names = missing[1].replace(f"{verb}.", "")
        return f"missing {names}: give it on the command line or in a recipe"
    if stray := re.match(r"unrecognized arguments: (?!--)(.+)", message):
        return (
            f"did not expect {stray[1]!r}: words without an option's name come right after the "
            f"verb; `freezetrain {verb} --help` says which"
        )
    if unknown := re.search(r"(?:arguments: --|option ')([\w.]+)", message):
        misses = near_misses(unknown[1], field_names(recipe))
        return f"unknown field {unknown[1]!r}{misses}; `freezetrain {verb} --help` lists them"
    message = re.sub(r'^Parser key "(.+?)":', r"\1:", message)
    # A field that may be None: say what else it may be.
    message = re.sub(
        r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: - "
        r"(Expected an? .+?)(?:\. Got value: .*?)? - .*Given value: (.*)",
        r"\1. Got value: \2",
        message,
    )
    return re.sub(
        r"Expected an? (?:typing\.Literal\[(.+)\]|<class '(\w+)'>)\. Got value: (.*)",
        _expected,
        message,
    )


def _expected(found: re.Match[str]) -> str:
    choices, kind, value = found.groups()
    if choices is None:
        return f"expected {kind}, got {value!r}"
    misses = near_misses(value, re.findall(r"[\w.-]+", choices))
    return f"expected one of {choices}, got {value!r}{misses}"
