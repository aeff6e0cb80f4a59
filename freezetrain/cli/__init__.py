"""`freezetrain`, the command. The command line alone parses, prints and exits.

Status 0: done; 1: a check said no; 2: bad input; 70: a fault of freezetrain; 71: another process of
the job is gone; 75: saved early, the same command goes on; 130: stopped by Ctrl-C.
"""

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from freezetrain import remarks
from freezetrain.cli.command_line import Command, parse
from freezetrain.cli.stopped import BEFORE_A_FOLDER, interrupted, with_way_on
from freezetrain.cli.verbs import VERBS
from freezetrain.errors import CheckError, Interrupted, Preempted, UserError
from freezetrain.escaping import visible, visible_lines
from freezetrain.ranks import (
    OUT,
    Launch,
    current_launch,
    end_with_parent,
    of_lost_rank,
    shared_folder,
)
from freezetrain.recipe import yaml12
from freezetrain.user_files import VERBOSE, verbose

__all__ = ["main"]

_CTRL_C = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        launch = current_launch()
    except UserError as error:
        sys.exit(_print_error(error, Launch(), 2))
    if launch.by == "freezetrain" and launch.rank:
        end_with_parent()
    status = _status(sys.argv[1:] if arguments is None else arguments, launch)
    if status == _CTRL_C and arguments is None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said, and the process ends anyway
    sys.exit(status)


def _status(arguments: Sequence[str], launch: Launch) -> int:
    try:
        return _run(arguments, parse(arguments), launch)
    except UserError as error:
        return _print_error(error, launch, 2)
    except CheckError as error:
        return _print_error(error, launch, 1)
    except Preempted as error:
        status = _CTRL_C if isinstance(error, Interrupted) else os.EX_TEMPFAIL
        if launch.rank == 0:
            return _print_error(error, launch, status)
        # Rank 0 says so for all processes that it started.
        return 0 if launch.by == "freezetrain" else status
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return _print_fault(launch)
        full = UserError(f"the disk is full: {error}; make room, then give the same command again")
        return _print_error(full, launch, 2)
    except KeyboardInterrupt:
        if launch.rank == 0:
            return _print_error(Interrupted(BEFORE_A_FOLDER), launch, _CTRL_C)
        _leave_the_end_to_rank_0(launch)
        return _CTRL_C
    except Exception as error:
        if not of_lost_rank(error):
            return _print_fault(launch)
        lost = UserError(
            "another process of this job has ended, and this one cannot go on without it; where it "
            "did not say why, the system ended it, mostly for want of memory: see what a process "
            "takes (train --dry_run), then give the same command again"
        )
        return _print_error(lost.with_traceback(error.__traceback__), launch, os.EX_OSERR)


def _print_fault(launch: Launch) -> int:
    """The traceback of the exception that is being handled, and what to do with it."""
    print(visible_lines(traceback.format_exc()), file=sys.stderr)
    fault = UserError(
        "this is a fault of freezetrain, not of what you gave; please report it to the project's "
        "issue tracker, with the lines above and the command"
    )
    return _print_error(fault, launch, os.EX_SOFTWARE)


def _print_error(error: Exception, launch: Launch, status: int) -> int:
    if verbose() and error.__traceback__ is not None:
        lines = "".join(traceback.format_exception(error))
        print(visible_lines(lines), file=sys.stderr)
    rank = f"rank {launch.rank}: " if launch.rank else ""
    print(f"freezetrain: {rank}{visible(str(error))}", file=sys.stderr, flush=True)
    _leave_the_end_to_rank_0(launch)
    return status


def _leave_the_end_to_rank_0(launch: Launch) -> None:
    """Let rank 0 end first, with its own sentence and status, where all ranks found the error.

    Lightning kills all processes, rank 0 at once too, when one that it started fails.
    """
    if launch.by == "freezetrain" and launch.rank:
        time.sleep(5)


def _run(arguments: Sequence[str], command: Command, launch: Launch) -> int:
    # Asked for before torch and the tokenizers start their threads.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if command.verbose:
        os.environ[VERBOSE] = "1"
    remarks.keep_back()
    verb = VERBS[command.verb]
    if launch.world > 1 and not verb.parallel:
        raise UserError(
            f"{command.verb} runs in one process, and {launch.by} started {launch.world}; start it "
            "by itself"
        )
    if command.print_config:
        if launch.rank == 0:
            sys.stdout.write(yaml12.dump(asdict(command.recipe)))
        return 0
    from freezetrain.places import require_places
    from freezetrain.run_folder import default_folder, is_done

    if command.dry_run:
        require_places(command.recipe)
        if launch.rank == 0:
            from freezetrain.training import dry_run

            folder = command.out or default_folder(command.verb)
            _print(dry_run.run(command.recipe, launch, folder, command.show).display)
        return 0
    folder = shared_folder(launch, command.out, default_folder(command.verb))
    if launch.rank == 0:
        try:
            return _lead(command, folder, launch)
        except Preempted as error:
            if launch.external:  # by a command that is not known here
                raise
            out = command.out is not None
            raise with_way_on(error, command.verb, arguments, folder, out) from error
        except KeyboardInterrupt as error:
            out = command.out is not None
            raise interrupted(command.verb, arguments, folder, out) from error
    # Rank 0 finds it finished too, and waits for nobody.
    if launch.external and is_done(folder, command.verb, command.recipe, verb.is_outdated):
        return 0
    import_module(f"freezetrain.{verb.job}").run(command.recipe, folder)
    return 0


def _lead(command: Command, folder: Path, launch: Launch) -> int:
    """Run the job on rank 0, which alone owns the folder, writes results and prints them."""
    from freezetrain.places import require_places
    from freezetrain.run_folder import claimed, finished, write_outcome

    verb = VERBS[command.verb]
    with claimed(folder, command.recipe, verb.resumable, verb.is_outdated) as recipe:
        if finished(folder, command.verb):
            _print([f"this run is finished; results: {folder / 'results.json'}"])
            return 0
        require_places(command.recipe)  # before the job imports torch
        with _announced(folder, verb.parallel and not launch.external):
            outcome = import_module(f"freezetrain.{verb.job}").run(recipe, folder)
    write_outcome(folder, command.verb, outcome)
    _print([*outcome.display, f"results: {folder / 'results.json'}"])
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


def _print(parts: Sequence[object]) -> None:
    from freezetrain.terminal import Terminal

    terminal = Terminal()
    for part in parts:
        terminal.print(part)
