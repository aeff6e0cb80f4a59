"""The command line as a recipe: options are the fields of the verb's recipe, in dotted names."""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from freezetrain import __version__
from freezetrain.cli.fields import SHORT, groups
from freezetrain.cli.verbs import VERBS, Verb
from freezetrain.errors import UserError, near_misses
from freezetrain.recipe import yaml12
from freezetrain.recipe.check import shown
from freezetrain.recipe.mapping import (
    allows_none,
    check_type,
    check_types,
    construct,
    field_names,
    field_types,
    fields_type,
    plain_type,
)
from freezetrain.recipe.text_types import expanded


@dataclass(frozen=True)
class Command:
    """A verb, its recipe, and what is to be done with it."""

    verb: str
    recipe: Any
    out: Path | None
    print_config: bool
    dry_run: bool
    show: int
    """Sequences that a dry run shows."""
    verbose: bool


def parse(arguments: Sequence[str]) -> Command:
    """What the command line says; fields come from recipes (YAML files), then from options.

    Raises UserError, one sentence, for bad input.
    """
    name = arguments[0] if arguments else ""
    if name not in VERBS and name not in ("-h", "--help", "--version"):
        problem = f"unknown verb {name!r}{near_misses(name, VERBS)}" if name else "no verb given"
        raise UserError(f"{problem}; verbs: {', '.join(VERBS)}")
    options = vars(_options(name, arguments))
    kind = VERBS[name].recipe_type()
    values: dict[str, Any] = {}
    for path in options["config"]:
        recipe = _read_recipe("--config", path)
        _assign_all(values, kind, check_types(kind, recipe, where=path, expand=True))
    for field, text in options.items():
        if (hint := _type_of(kind, field)) is not None:
            value = check_type(hint, _read_option(hint, field, text), field, expand=True)
            _assign(values, kind, field, value)
    out, show = options["out"], options.get("show")
    if show is not None and (show < 1 or not options["dry_run"]):
        raise UserError(
            f"--show must be 1 or more and stand beside --dry_run, got {show}; give both, or "
            "leave it out"
        )
    return Command(
        name,
        construct(kind, values),
        None if out is None else Path(_expanded("--out", out)),
        options["print_config"],
        options.get("dry_run", False),
        show or 0,
        options["verbose"],
    )


def _options(name: str, arguments: Sequence[str]) -> argparse.Namespace:
    """The words of the command line, each under the field or option that it is for."""
    parser = _Parser(
        prog="freezetrain",
        description="Further pre-training with regions of weights frozen bit for bit.",
        epilog="`freezetrain VERB --help` lists a verb's options.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for other, verb in VERBS.items():
        if other != name:
            verbs.add_parser(other, help=verb.help, add_help=False)
            continue
        asked = verbs.add_parser(
            name,
            help=verb.help,
            description=verb.help,
            usage=_usage(name, verb),
            allow_abbrev=False,
        )
        kind = verb.recipe_type()
        _add_options(asked, verb, kind)
        arguments = [name, *_leading_words_named(verb, arguments[1:])]
        for word in arguments:  # a name in a group that has any names: --brake.limits.es 0.05
            field = word.removeprefix("--").partition("=")[0]
            if word.startswith("--") and field not in field_names(kind) and _type_of(kind, field):
                asked.add_argument(f"--{field}", dest=field, default=argparse.SUPPRESS)
    options, strays = parser.parse_known_args(arguments)
    if strays and strays[0].startswith("--"):
        field = strays[0][2:].partition("=")[0]
        misses = near_misses(field, field_names(kind))
        raise UserError(f"unknown field {field!r}{misses}; `freezetrain {name} --help` lists them")
    if strays:
        raise UserError(
            f"did not expect {strays[0]!r}: words without an option's name come right after the "
            f"verb; `freezetrain {name} --help` says which"
        )
    return options


class _Parser(argparse.ArgumentParser):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # argparse takes -1e-3 for an option, and -1 for none.
        self._negative_number_matcher = re.compile(r"^-\.?(?:\d|inf)")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` lists the options")


def _usage(name: str, verb: Verb) -> str:
    words = [part.split(".")[0].upper() for part in verb.positional]
    if verb.trailing:
        word = verb.trailing.split(".")[0].removesuffix("s").upper()
        words.append(f"{word} [{word} ...]")
    return " ".join(["freezetrain", name, *words, "[options]"]).replace("CONFIG", "[RECIPE.yaml]")


def _leading_words_named(verb: Verb, words: Sequence[str]) -> list[str]:
    """``words`` with the names of the options that those at the beginning are for."""
    leading = list(takewhile(lambda word: not word.startswith("-"), words))
    count = min(len(leading), len(verb.positional))
    named = [f"--{field}={word}" for field, word in zip(verb.positional, leading, strict=False)]
    if verb.trailing and leading[count:]:
        field, _, part = verb.trailing.partition(".")
        items = [{part: word} if part else word for word in leading[count:]]
        named.append(f"--{field}={json.dumps(items)}")  # no word is taken for a number or a list
        count = len(leading)
    return [*named, *words[count:]]


def _add_options(parser: argparse.ArgumentParser, verb: Verb, kind: type) -> None:
    parser.add_argument(
        "--config", action="append", default=[], help="A recipe: a YAML file of the fields below."
    )
    parser.add_argument(
        "--out",
        help="Folder for all that the verb leaves; new or empty (default: runs/<verb>-<time>).",
    )
    parser.add_argument(
        "--print_config",
        "--print-config",
        action="store_true",
        help="Print the recipe with all fields filled in, and do nothing else.",
    )
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="Show the whole reports of libraries, and the traceback of an error.",
    )
    if verb.dry:
        parser.add_argument(
            "--dry_run",
            "--dry-run",
            action="store_true",
            help="Print what would run, with the memory it takes, and do nothing else.",
        )
        parser.add_argument(
            "--show",
            type=int,
            metavar="N",
            help="With --dry_run: read the texts too, and print N sequences of the run as text.",
        )
    for group in groups(kind):
        said = group.doc or "Fields of the recipe, which may also be given as options."
        section = parser.add_argument_group(group.name or "recipe", said)
        for field in group.fields:
            default = "required" if field.default is None else f"default: {field.default}"
            section.add_argument(
                f"--{field.name}",
                *([f"--{field.short}"] if field.short else []),
                dest=field.name,
                metavar=field.type,
                default=argparse.SUPPRESS,
                help=f"{field.doc} ({default})".replace("%", "%%"),
            )
        if group.name and group.name not in SHORT:  # the whole group, as YAML or as a file
            name = f"--{group.name}"
            parser.add_argument(name, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _type_of(kind: type, field: str) -> Any:
    """The type of a dotted field, or of a name in a dict; None where there is no such field."""
    hint: Any = kind
    for part in field.split("."):
        inner = fields_type(hint) or plain_type(hint)
        if is_dataclass(inner):
            hint = field_types(inner).get(part)  # type: ignore[arg-type]
        elif get_origin(inner) is dict:
            hint = get_args(inner)[1]
        elif inner is not Any:
            return None
    return hint


def _read_recipe(option: str, path: str) -> Mapping[str, Any]:
    what, remedy = "the recipe", "give a YAML file of fields, name: value"
    recipe = yaml12.read(_expanded(option, path), what, remedy)
    if not isinstance(recipe, Mapping | None):
        raise UserError(
            f"{path}: expected the fields of a recipe, name: value, got {shown(recipe)}"
        )
    return recipe or {}


def _expanded(option: str, path: str) -> str:
    try:
        return expanded(path)
    except UserError as error:
        raise UserError(f"{option}: {error}") from error


def _read_option(hint: Any, field: str, text: str) -> Any:
    """The value of an option: text as it is, all else as YAML, or the file of a group of fields."""
    inner = plain_type(hint)
    several = inner == str | list[str] and text.startswith("[")
    as_it_is = inner in (str, str | list[str]) and not several
    if as_it_is or get_origin(inner) is Literal:
        return None if text == "null" and allows_none(hint) else text
    if is_dataclass(inner) and text.endswith((".yaml", ".yml")):
        return _read_recipe(f"--{field}", text)
    try:
        return yaml12.load(text)
    except ValueError as error:
        raise UserError(f"--{field}: cannot read {shown(text)}: {error}") from error


def _assign(values: dict[str, Any], kind: type, field: str, value: Any) -> None:
    """Set the dotted ``field``; a group of fields keeps those that ``value`` does not have."""
    *groups, last = field.split(".")
    for group in groups:
        if not isinstance(values.get(group), dict):
            values[group] = {}
        values = values[group]
    inner = plain_type(_type_of(kind, field))
    if is_dataclass(inner) and isinstance(value, Mapping) and isinstance(values.get(last), dict):
        _assign_all(values[last], inner, value)  # type: ignore[arg-type]
    else:
        values[last] = value


def _assign_all(values: dict[str, Any], kind: type, later: Mapping[str, Any]) -> None:
    for field, value in later.items():
        _assign(values, kind, field, value)
