"""The command line. It alone parses, prints and exits: 0 done, 1 a check said no, 2 bad input."""

import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from jsonargparse import ActionConfigFile, ArgumentParser, set_loader, set_parsing_settings
from yaml import YAMLError

import freezetrain
from freezetrain import recipe
from freezetrain.errors import CheckError, UserError, near_misses
from freezetrain.recipe import yaml12


@dataclass(frozen=True)
class Verb:
    recipe: type
    job: str  # module with `run(recipe, folder)`
    positional: tuple[str, ...] = ()  # fields that may be given without their option's name
    resumable: bool = False


VERBS = {
    "quickstart": Verb(recipe.QuickstartRecipe, "freezetrain.jobs.quickstart"),
    "score": Verb(recipe.ScoreRecipe, "freezetrain.jobs.score", ("config",)),
    "select": Verb(recipe.SelectRecipe, "freezetrain.jobs.select", ("config",)),
    "ablate": Verb(recipe.AblateRecipe, "freezetrain.jobs.ablate", ("config",)),
    "train": Verb(recipe.TrainRecipe, "freezetrain.jobs.train", ("config",), resumable=True),
    "forgetting": Verb(
        recipe.ForgettingRecipe, "freezetrain.jobs.forgetting", ("base.path", "adapted.path")
    ),
    "verify": Verb(recipe.VerifyRecipe, "freezetrain.jobs.verify", ("base", "adapted", "region")),
    "info": Verb(recipe.InfoRecipe, "freezetrain.jobs.info", ("path",)),
}
# `--model X` reads better than `--model.path X`; in a recipe both are groups of fields.
SHORT = {"--model": "--model.path", "--texts": "--texts.folder"}


def build_parser() -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_loader("yaml", yaml12.load, exceptions=(YAMLError,))
    parser = ArgumentParser(
        prog="freezetrain",
        description="Further pre-training with regions of weights frozen bit for bit.",
        version=freezetrain.__version__,
        exit_on_error=False,
    )
    verbs = parser.add_subcommands(dest="verb")
    for name, verb in VERBS.items():
        words = " ".join(part.split(".")[0].upper() for part in verb.positional)
        about = " ".join((verb.recipe.__doc__ or "").split())
        of_verb = ArgumentParser(
            prog=f"freezetrain {name}",
            usage=f"freezetrain {name} {words.replace('CONFIG', '[RECIPE.yaml]')} [options]",
            description=about,
            exit_on_error=False,
        )
        of_verb.add_argument(
            "--config", action=ActionConfigFile, help="A recipe: a YAML file of the fields below."
        )
        of_verb.add_argument(
            "--out",
            type=str | None,
            default=None,
            help="Folder for all that the verb leaves; new or empty. Default: runs/<verb>-<time>.",
        )
        of_verb.add_class_arguments(verb.recipe)
        verbs.add_subcommand(name, of_verb, help=about)
    return parser


def _spelled_out(arguments: Sequence[str]) -> list[str]:
    """Give leading bare words and short options their full names."""
    words = list(arguments)
    if not words or words[0] not in VERBS:
        return words
    verb = VERBS[words[0]]
    spelled, rest = words[:1], words[1:]
    for name in verb.positional:
        if not rest or rest[0].startswith("-"):
            break
        spelled += [f"--{name}", rest.pop(0)]
    hints = get_type_hints(verb.recipe)
    for word in rest:
        option, equals, value = word.partition("=")
        # only where the field is a group of fields: quickstart's model is a plain path
        is_group = hints.get(option[2:]) is not None and hints[option[2:]] != str | None
        if option in SHORT and is_group:
            option = SHORT[option]
        spelled.append(option + equals + value)
    return spelled


def _field_names(kind: Any, prefix: str = "") -> list[str]:
    """Dotted names of all fields of a recipe."""
    names = []
    hints = get_type_hints(kind)
    for item in fields(kind):
        names.append(prefix + item.name)
        for part in getattr(hints[item.name], "__args__", (hints[item.name],)):
            if is_dataclass(part):
                names += _field_names(part, f"{prefix}{item.name}.")
    return names


def _one_sentence(error: BaseException, arguments: Sequence[str]) -> str:
    """What the parser complains of, in one line, with near misses of an unknown field."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    message = re.sub(r'^Parser key "(.+?)":', r"\1:", " ".join(str(error).split()))
    verb = VERBS.get(arguments[0]) if arguments else None
    if verb is None:
        unknown = arguments[0] if arguments else ""
        return f"unknown verb {unknown!r}{near_misses(unknown, VERBS)}; verbs: {', '.join(VERBS)}"
    if message.startswith("Problems parsing config"):
        recipes = [word for word in arguments[1:] if Path(word).suffix in (".yaml", ".yml")]
        return f"cannot read the recipe {' '.join(recipes)}: {message.partition(': ')[2]}"
    if missing := re.search(r"arguments are required: (.+)", message):
        names = missing.group(1).replace(f"{arguments[0]}.", "")
        return f"missing {names}: give it on the command line or in a recipe"
    if unknown_field := re.search(r"(?:arguments: --|option ')([\w.]+)", message):
        name = unknown_field.group(1)
        message = f"unknown field {name!r}{near_misses(name, _field_names(verb.recipe))}"
        return f"{message}; `freezetrain {arguments[0]} --help` lists them"
    return message


def _parse(arguments: Sequence[str]) -> tuple[str, Any, Path | None]:
    try:
        parser = build_parser()
        told = parser.instantiate(parser.parse_args(_spelled_out(arguments)))
    except (ArgumentError, ValueError, TypeError, UserError) as error:
        raise UserError(_one_sentence(error, arguments)) from error
    values = told[told.verb]
    kind = VERBS[told.verb].recipe
    filled = kind(**{item.name: values[item.name] for item in fields(kind)})
    return told.verb, filled, Path(values.out) if values.out else None


def _run(arguments: Sequence[str]) -> int:
    # Asked for before torch and the tokenizers start their threads.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    name, filled, folder = _parse(arguments)
    from rich.console import Console

    from freezetrain.jobs.outcome import claimed, default_folder, write_outcome

    console = Console()
    verb = VERBS[name]
    with claimed(folder or default_folder(name), filled, verb.resumable) as folder:
        if (folder / "results.json").is_file():
            console.print(f"this run is finished; results: {folder / 'results.json'}")
            return 0
        outcome = import_module(verb.job).run(filled, folder)
    write_outcome(folder, name, outcome)
    for part in outcome.display:
        console.print(part)
    console.print(f"results: {folder / 'results.json'}", highlight=False)
    return 0 if outcome.passed else 1


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        status = _run(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print(f"freezetrain: {error}", file=sys.stderr)
        status = 2
    except CheckError as error:
        print(f"freezetrain: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
