"""The verbs, and how the command line becomes a recipe."""

import json
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import takewhile
from pathlib import Path
from typing import Any, get_type_hints

from jsonargparse import ActionConfigFile, ArgumentParser, set_loader, set_parsing_settings
from yaml import YAMLError

import freezetrain
from freezetrain.analysis.recipe import (
    AblateRecipe,
    ConvertRecipe,
    InfoRecipe,
    OverlapRecipe,
    PerturbRecipe,
    ScoreRecipe,
    SelectRecipe,
    VerifyRecipe,
)
from freezetrain.compare.recipe import GROWS, CompareRecipe
from freezetrain.errors import UserError, near_misses
from freezetrain.measuring.recipe import ForgettingRecipe
from freezetrain.paper.recipe import PaperRecipe
from freezetrain.quickstart.recipe import QuickstartRecipe
from freezetrain.recipe import yaml12
from freezetrain.recipe.complaint import one_sentence
from freezetrain.report.recipe import ReportRecipe
from freezetrain.training.recipe import TrainRecipe
from freezetrain.vocabulary.recipe import ExtendRecipe


@dataclass(frozen=True)
class Verb:
    recipe: type
    job: str  # module with `run(recipe, folder)`
    positional: tuple[str, ...] = ()  # fields that may be given without their option's name
    trailing: str | None = None  # a list, or a field of its items, that takes all further words
    resumable: bool = False
    grows: tuple[str, ...] = ()  # fields that may change when it is resumed: then it does more
    parallel: bool = False  # may run in several processes at once
    dry: bool = False  # may be tried without being run


@dataclass(frozen=True)
class Told:
    """What the command line says: a verb, its recipe, and what is done with it."""

    verb: str
    recipe: Any
    out: Path | None = None
    print_config: bool = False
    dry_run: bool = False


VERBS = {
    "quickstart": Verb(QuickstartRecipe, "freezetrain.quickstart.quickstart"),
    "paper": Verb(
        PaperRecipe, "freezetrain.paper.paper", ("config",), resumable=True, parallel=True
    ),
    "score": Verb(
        ScoreRecipe, "freezetrain.analysis.score", ("config",), resumable=True, parallel=True
    ),
    "select": Verb(SelectRecipe, "freezetrain.analysis.select", ("config",)),
    "ablate": Verb(AblateRecipe, "freezetrain.analysis.ablate", ("config",)),
    "perturb": Verb(PerturbRecipe, "freezetrain.analysis.perturb", ("config",)),
    "overlap": Verb(OverlapRecipe, "freezetrain.analysis.overlap", trailing="regions"),
    "convert": Verb(ConvertRecipe, "freezetrain.analysis.convert", ("source",)),
    "extend": Verb(ExtendRecipe, "freezetrain.vocabulary.extend", ("config",)),
    "train": Verb(
        TrainRecipe,
        "freezetrain.training.train",
        ("config",),
        resumable=True,
        parallel=True,
        dry=True,
    ),
    "compare": Verb(
        CompareRecipe,
        "freezetrain.compare.compare",
        ("config",),
        resumable=True,
        grows=GROWS,
    ),
    "forgetting": Verb(
        ForgettingRecipe,
        "freezetrain.measuring.forgetting",
        ("base.path",),
        trailing="models.path",
    ),
    "verify": Verb(VerifyRecipe, "freezetrain.analysis.verify", ("base", "adapted", "region")),
    "report": Verb(ReportRecipe, "freezetrain.report.runs", trailing="runs"),
    "info": Verb(InfoRecipe, "freezetrain.analysis.info", ("path",)),
}

# `--model X` reads better than `--model.path X`; in a recipe both are groups of fields.
SHORT = {"--model": "--model.path", "--texts": "--texts.folder"}

SPELLINGS = {"--dry-run": "--dry_run", "--print-config": "--print_config"}


def build_parser(asked: str | None = None) -> ArgumentParser:
    """The parser of all verbs, of which ``asked`` alone has its options.

    Fields of a recipe are found by introspection, which takes a while; help on all verbs shows
    nothing of them.
    """
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
        of_verb = _parser_of(name) if name == asked else ArgumentParser()
        verbs.add_subcommand(name, of_verb, help=_about(verb))
    return parser


def _about(verb: Verb) -> str:
    return " ".join((verb.recipe.__doc__ or "").split())


def _parser_of(name: str) -> ArgumentParser:
    verb = VERBS[name]
    words = " ".join(part.split(".")[0].upper() for part in verb.positional)
    if verb.trailing:
        word = verb.trailing.split(".")[0].removesuffix("s").upper()
        words = f"{words} {word} [{word} ...]".lstrip()
    short = [
        f"{word} X is short for {full} X." for word, full in SHORT.items() if _is_group(verb, word)
    ]
    parser = ArgumentParser(
        prog=f"freezetrain {name}",
        usage=f"freezetrain {name} {words.replace('CONFIG', '[RECIPE.yaml]')} [options]",
        description=" ".join([_about(verb), *short]),
        exit_on_error=False,
        print_config=None,  # jsonargparse's own would print --out too, which is no recipe's
    )
    parser.add_argument(
        "--config", action=ActionConfigFile, help="A recipe: a YAML file of the fields below."
    )
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="Folder for all that the verb leaves; new or empty. Default: runs/<verb>-<time>.",
    )
    parser.add_argument(
        "--print_config",
        action="store_true",
        help="Print the recipe with all fields filled in, and do nothing else.",
    )
    if verb.dry:
        parser.add_argument(
            "--dry_run",
            action="store_true",
            help="Print what would run, with the memory it takes, and do nothing else.",
        )
    parser.add_class_arguments(verb.recipe)
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
    if verb.trailing:
        listed = list(takewhile(lambda word: not word.startswith("-"), rest))
        rest = rest[len(listed) :]
        if listed:
            name, _, part = verb.trailing.partition(".")
            # As JSON, so that no word is taken for a number or a list.
            items = [{part: word} for word in listed] if part else listed
            spelled.append(f"--{name}={json.dumps(items)}")
    for word in rest:
        option, equals, value = word.partition("=")
        if option in SHORT and _is_group(verb, option):
            option = SHORT[option]
        spelled.append(SPELLINGS.get(option, option) + equals + value)
    return spelled


def _is_group(verb: Verb, option: str) -> bool:
    """Whether the option is a group of fields; quickstart's model, for one, is a plain path."""
    return get_type_hints(verb.recipe).get(option[2:], str | None) != str | None


def parse(arguments: Sequence[str]) -> Told:
    """What the command line says. UserError, one sentence, for bad input."""
    if not {"-h", "--help", "--version"}.intersection(arguments[:1]):
        named = arguments[0] if arguments else ""
        if named not in VERBS:
            wrong = (
                f"unknown verb {named!r}{near_misses(named, VERBS)}" if named else "no verb given"
            )
            raise UserError(f"{wrong}; verbs: {', '.join(VERBS)}")
    try:
        parser = build_parser(arguments[0])
        told = parser.instantiate(parser.parse_args(_spelled_out(arguments)))
    except (ArgumentError, ValueError, TypeError, UserError) as error:
        raise UserError(one_sentence(error, arguments, VERBS[arguments[0]].recipe)) from error
    values = told[told.verb]
    kind = VERBS[told.verb].recipe
    filled = kind(**{item.name: values[item.name] for item in fields(kind)})
    return Told(
        verb=told.verb,
        recipe=filled,
        out=Path(values.out) if values.out else None,
        print_config=values.print_config,
        dry_run=values.get("dry_run", False),
    )
