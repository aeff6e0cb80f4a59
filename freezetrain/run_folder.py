"""The folder of a run: claimed by its recipe, held against other processes; what a job returns."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from freezetrain import __version__
from freezetrain.errors import UserError
from freezetrain.files import UNFINISHED, remove_unfinished, whole, write_json
from freezetrain.recipe import yaml12
from freezetrain.recipe.mapping import build
from freezetrain.user_files import read_json

_RECIPE = "recipe.yaml"

_RESULTS = "results.json"


@dataclass(frozen=True)
class Outcome:
    """What a job returns: results for machines, and what people look at, in order."""

    results: dict[str, Any]
    display: Sequence[Any] = field(default_factory=tuple)
    """Text or rich renderables."""
    passed: bool = True


class InUseError(UserError):
    """Another process is at work in the folder, which is to be left alone."""


def default_folder(verb: str) -> Path:
    return Path("runs") / f"{verb}-{datetime.now():%Y%m%d-%H%M%S}"


def claim(folder: Path, recipe: Any, resumable: bool = False) -> None:
    """Make ``folder`` this run's own and write the recipe into it.

    A folder that holds anything already is refused, except, where the job is ``resumable``, one
    that a run of the same recipe left. The recipe's type says which fields may be others then:
    ``changeable``, dotted names of fields or groups, without consequence for what is computed;
    ``grows``, names of such with which the job does more than before; and ``collects``, those of
    them that are lists whose earlier items stay. The recipe that the run began with stays. Raises
    UserError, also where it cannot be written.
    """
    path = folder / _RECIPE
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give --out a folder")
    # A start that was killed may have left an unfinished recipe.
    if folder.is_dir() and any(file.suffix != UNFINISHED for file in folder.iterdir()):
        if not resumable or not path.is_file():
            raise UserError(
                f"{folder} is not empty, and nothing in it is overwritten; give --out a new folder"
            )
        changed = changed_fields(_read_recipe(path), recipe)
        grown = _grown_fields(changed, recipe)
        if others := [name for name in changed if name not in grown]:
            raise UserError(
                f"{folder} holds another run, with another {', '.join(others[:5])}; give --out a "
                "new folder, or the same recipe to resume it"
            )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path)
        with whole(path) as new:
            new.write_text(yaml12.dump(asdict(recipe)), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; choose another --out"
        ) from error


def _never(recipe: Any, folder: Path) -> bool:
    return False


@contextmanager
def claimed(
    folder: Path,
    recipe: Any,
    resumable: bool = False,
    outdated: Callable[[Any, Path], bool] = _never,
) -> Iterator[Any]:
    """:func:`claim`, held against other processes, and undone if the job ends with nothing left.

    By bad input, by Ctrl-C, or in any other way. Gives the recipe to run: ``recipe``, behind the
    items of an earlier one where fields of it collect. Where the recipe has grown, it takes the
    place of the earlier one. There, and where it says of recipe and folder that the results are
    ``outdated``, results.json, which is to be made anew, goes; bad input brings both back.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        claim(folder, recipe, resumable)
    except KeyboardInterrupt:
        _undo(folder, made)
        raise
    try:
        with _held(folder):
            recipe = _collected(_read_recipe(folder / _RECIPE), recipe)
            with _grown(folder, recipe, outdated(recipe, folder)):
                yield recipe
    except InUseError:
        raise
    except BaseException:
        if os.listdir(folder) == [_RECIPE]:
            (folder / _RECIPE).unlink()
            _undo(folder, made)
        raise


def _undo(folder: Path, made: Sequence[Path]) -> None:
    """Remove the folders that were ``made``, where only an own recipe is in them."""
    with suppress(OSError):  # another run has begun in one of them
        if folder in made and os.listdir(folder) == [_RECIPE]:
            (folder / _RECIPE).unlink()
        for place in made:
            place.rmdir()


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Refuse a folder in which another process is at work. The lock ends with the process."""
    try:
        # Open for writing, without which NFS gives no exclusive lock.
        file = (folder / _RECIPE).open("r+b")
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; choose another --out"
        ) from error
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InUseError(
                    f"another process is at work in {folder}; wait for it, or give --out another "
                    "folder"
                ) from error
            except OSError as error:
                raise UserError(
                    f"cannot lock {folder / _RECIPE} against other runs: {error.strerror}; give "
                    "--out a folder on a file system with locks (Lustre has them with the mount "
                    "option flock)"
                ) from error
        yield


@contextmanager
def _grown(folder: Path, recipe: Any, outdated: bool) -> Iterator[None]:
    """Write the recipe where it has grown, and bring the earlier one back after bad input."""
    path, results = folder / _RECIPE, folder / _RESULTS
    if not outdated and not _grown_fields(changed_fields(_read_recipe(path), recipe), recipe):
        yield
        return
    earlier = path.read_text(encoding="utf-8"), results.is_file() and results.read_bytes()
    results.unlink(missing_ok=True)  # first, as is_done() expects
    # In place: the file is what holds the folder against other processes.
    path.write_text(yaml12.dump(asdict(recipe)), encoding="utf-8")
    try:
        yield
    except UserError:
        path.write_text(earlier[0], encoding="utf-8")
        if earlier[1]:
            results.write_bytes(earlier[1])
        raise


def _collected(earlier: Any, recipe: Any) -> Any:
    """``recipe`` with the items, groups of fields, that the ``earlier`` one has in addition."""
    lists = {}
    for name in getattr(recipe, "collects", ()):
        now = getattr(recipe, name)
        before = [
            build(type(now[0]), item, f"{name} of the earlier recipe") for item in earlier[name]
        ]
        lists[name] = [*before, *(item for item in now if item not in before)]
    return replace(recipe, **lists) if lists else recipe


def _read_recipe(path: Path) -> Any:
    try:
        return yaml12.load(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged, so that the run cannot be told; give --out a new folder"
        ) from error


def changed_fields(earlier: Any, recipe: Any) -> list[str]:
    """Dotted names of the fields with which ``recipe`` makes another run of the ``earlier`` one.

    ``earlier`` is plain values, as read from a file; a field that was not there yet when they were
    written has its default. Fields that are ``changeable`` do not count.
    """
    changeable = getattr(recipe, "changeable", ())
    whole = tuple(f"{name}." for name in changeable)  # of groups of fields
    known = _with_new_fields(earlier, recipe)
    return [
        name
        for name in _differences(known, asdict(recipe))
        if name not in changeable and not name.startswith(whole)
    ]


def _with_new_fields(earlier: Any, recipe: Any) -> Any:
    """``earlier`` with the defaults of the fields that it lacks, of ``recipe`` and its groups."""
    if not (isinstance(earlier, dict) and is_dataclass(recipe)):
        return earlier
    known = dict(earlier)
    for item in fields(recipe):
        if item.name in earlier:
            known[item.name] = _with_new_fields(earlier[item.name], getattr(recipe, item.name))
        elif item.default_factory is not MISSING:
            default: Any = item.default_factory()
            group = is_dataclass(default) and not isinstance(default, type)
            known[item.name] = asdict(default) if group else default
        elif item.default is not MISSING:
            known[item.name] = item.default
    return known


def _differences(earlier: Any, now: Any, name: str = "") -> list[str]:
    if not (isinstance(earlier, dict) and isinstance(now, dict)):
        return [] if earlier == now else [name or "recipe"]
    names: list[str] = []
    for key in sorted({*earlier, *now}):
        names += _differences(earlier.get(key), now.get(key), f"{name}.{key}" if name else key)
    return names


def _grown_fields(changed: Sequence[str], recipe: Any) -> list[str]:
    grows = getattr(recipe, "grows", ())
    return [name for name in changed if name.partition(".")[0] in grows]


def finished(folder: Path, verb: str) -> bool:
    """Whether ``folder`` holds the results of ``verb``, with every check passed.

    UserError for a file that is none.
    """
    path = folder / _RESULTS
    if not path.exists():
        return False
    remedy = "delete it, and give the command again, to have the run come to its end anew"
    results = read_json(path, "the results", remedy)
    if not isinstance(results, dict) or results.get("verb") != verb:
        raise UserError(f"{path} does not hold the results of {verb}; {remedy}")
    return results.get("passed") is not False


def is_done(
    folder: Path, verb: str, recipe: Any, outdated: Callable[[Any, Path], bool] = _never
) -> bool:
    """Whether ``folder`` is finished, ``recipe`` adds nothing to it, and it is not ``outdated``.

    For a process that does not claim the folder, which may look before or while another one does.
    """
    results, path = folder / _RESULTS, folder / _RECIPE
    if not (results.is_file() and path.is_file()):
        return False
    earlier = path.read_bytes()
    if not results.is_file():  # the recipe is being written anew
        return False
    known = yaml12.load(earlier.decode("utf-8"))
    recipe = _collected(known, recipe)
    if _grown_fields(changed_fields(known, recipe), recipe) or outdated(recipe, folder):
        return False
    return finished(folder, verb)


def write_outcome(folder: Path, verb: str, outcome: Outcome) -> None:
    """Write results.json whole or not at all."""
    head = {"freezetrain": __version__, "verb": verb, "passed": outcome.passed}
    write_json(folder / _RESULTS, {**head, **outcome.results})
