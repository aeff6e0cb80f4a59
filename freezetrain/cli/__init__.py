"""The command line. It alone parses, prints and exits.

Status 0: done; 1: a check said no; 2: bad input; 75: saved early, the same command goes on.
"""

import errno
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from freezetrain.cli.verbs import VERBS, Told, parse
from freezetrain.errors import CheckError, Preempted, UserError
from freezetrain.ranks import OUT, Launch, current_launch, end_with_parent, run_folder
from freezetrain.recipe import yaml12

__all__ = ["main"]


def _run(arguments: Sequence[str], launch: Launch) -> int:
    # Asked for before torch and the tokenizers start their threads.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    told = parse(arguments)
    verb = VERBS[told.verb]
    if launch.world > 1 and not verb.parallel:
        raise UserError(
            f"{told.verb} runs in one process, and {launch.by} started {launch.world}; start it "
            "by itself"
        )
    if told.print_config:
        if launch.rank == 0:
            sys.stdout.write(yaml12.dump(asdict(told.recipe)))
        return 0
    if told.dry_run:
        if launch.rank == 0:
            from freezetrain.run_folder import default_folder
            from freezetrain.training import dry_run

            _show(dry_run.run(told.recipe, launch, told.out or default_folder(told.verb)).display)
        return 0
    from freezetrain.run_folder import default_folder

    folder = run_folder(launch, told.out, default_folder(told.verb))
    if launch.rank == 0:
        return _lead(told, folder, launch)
    # Rank 0 finds it finished too, and waits for nobody.
    if launch.external and (folder / "results.json").is_file():
        return 0
    import_module(verb.job).run(told.recipe, folder)
    return 0


def _lead(told: Told, folder: Path, launch: Launch) -> int:
    """Run the job on rank 0, which alone owns the folder, writes results and prints them."""
    from freezetrain.run_folder import claimed, write_outcome

    verb = VERBS[told.verb]
    with claimed(folder, told.recipe, verb.resumable, verb.grows) as folder:
        if (folder / "results.json").is_file():
            _show([f"this run is finished; results: {folder / 'results.json'}"])
            return 0
        with _announced(folder, verb.parallel and not launch.external):
            outcome = import_module(verb.job).run(told.recipe, folder)
    write_outcome(folder, told.verb, outcome)
    _show([*outcome.display, f"results: {folder / 'results.json'}"])
    return 0 if outcome.passed else 1


@contextmanager
def _announced(folder: Path, needed: bool) -> Iterator[None]:
    """Tell processes that the job starts which folder the run has."""
    if not needed:
        yield
        return
    os.environ[OUT] = str(folder.absolute())
    try:
        yield
    finally:
        del os.environ[OUT]


def _show(parts: Sequence[object]) -> None:
    from rich.console import Console

    console = Console()
    for part in parts:
        text = isinstance(part, str)  # in which a path with [brackets] is no markup
        console.print(part, highlight=not text, markup=not text)


def _status(arguments: Sequence[str], launch: Launch) -> int:
    try:
        return _run(arguments, launch)
    except UserError as error:
        return _said(error, launch, 2)
    except CheckError as error:
        return _said(error, launch, 1)
    except Preempted as error:
        return _said(error, launch, os.EX_TEMPFAIL) if launch.rank == 0 else _left(launch)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        full = UserError(f"the disk is full: {error}; make room, then give the same command again")
        return _said(full, launch, 2)
    except KeyboardInterrupt:
        return 130


def _said(error: Exception, launch: Launch, status: int) -> int:
    rank = f"rank {launch.rank}: " if launch.rank else ""
    print(f"freezetrain: {rank}{error}", file=sys.stderr, flush=True)
    if launch.by == "freezetrain" and launch.rank:
        # Lightning kills all processes, rank 0 at once too, when one that it started fails; where
        # all ranks found the error, rank 0 is to end with its own sentence and status.
        time.sleep(5)
    return status


def _left(launch: Launch) -> int:
    """Status of a rank that was told to stop: rank 0 says so for all that it started."""
    return 0 if launch.by == "freezetrain" else os.EX_TEMPFAIL


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        launch = current_launch()
    except UserError as error:
        sys.exit(_said(error, Launch(), 2))
    if launch.by == "freezetrain" and launch.rank:
        end_with_parent()
    sys.exit(_status(sys.argv[1:] if arguments is None else arguments, launch))
