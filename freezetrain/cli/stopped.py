"""What a command that was stopped has kept, and the command that goes on from there."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from freezetrain.cli.verbs import VERBS
from freezetrain.errors import Interrupted, Preempted

BEFORE_A_FOLDER = "stopped by Ctrl-C before anything was made"


def with_way_on(
    error: Preempted, verb: str, arguments: Sequence[str], folder: Path, out: bool
) -> Preempted:
    """``error`` with the command that goes on, where the verb can; else a sentence that it cannot.

    ``arguments``: the words of the command line; ``out``: they name the folder.
    """
    if VERBS[verb].keeps is None:
        reason = str(error).partition(" after step")[0]
        return type(error)(f"{reason}; {_nothing_to_go_on_from(verb, folder)}")
    return type(error)(f"{error}: {_command(arguments, folder, out)}")


def interrupted(verb: str, arguments: Sequence[str], folder: Path, out: bool) -> Interrupted:
    """Ctrl-C outside of training's steps: what is in the folder is all that is kept."""
    keeps, command = VERBS[verb].keeps, _command(arguments, folder, out)
    if keeps is None:
        return Interrupted(f"stopped by Ctrl-C; {_nothing_to_go_on_from(verb, folder)}")
    if not _has_more_than_a_recipe(folder):
        return Interrupted(f"stopped by Ctrl-C; nothing is kept: begin again with {command}")
    if verb == "train":
        steps = _checkpoints(folder)
        if not steps:
            return Interrupted(f"stopped by Ctrl-C; no step was saved: begin again with {command}")
        keeps = f"the last checkpoint, {folder / 'checkpoints' / f'step={max(steps)}.ckpt'}"
    return Interrupted(f"stopped by Ctrl-C; kept in {folder}: {keeps}; go on with {command}")


def _nothing_to_go_on_from(verb: str, folder: Path) -> str:
    if not _has_more_than_a_recipe(folder):
        return f"nothing is kept, and {verb} begins anew"
    return (
        f"{folder} keeps what was made so far, from which {verb} cannot go on: give --out a new "
        "folder"
    )


def _has_more_than_a_recipe(folder: Path) -> bool:
    return folder.is_dir() and any(path.name != "recipe.yaml" for path in folder.iterdir())


def _checkpoints(folder: Path) -> list[int]:
    names = [re.fullmatch(r"step=(\d+)\.ckpt", p.name) for p in folder.glob("checkpoints/*")]
    return [int(match[1]) for match in names if match]


def _command(arguments: Sequence[str], folder: Path, out: bool) -> str:
    more = [] if out else ["--out", str(folder)]
    return shlex.join(["freezetrain", *arguments, *more])
