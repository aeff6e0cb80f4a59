"""The command line. It alone parses, prints and exits: 0 done, 1 a check said no, 2 bad input."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from freezetrain.cli.verbs import VERBS, parse
from freezetrain.errors import CheckError, UserError

__all__ = ["main"]


def _run(arguments: Sequence[str]) -> int:
    # Asked for before torch and the tokenizers start their threads.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    name, filled, folder = parse(arguments)
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
