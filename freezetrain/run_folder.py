"""What a job hands back to whoever called it, and the folder that it leaves behind."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from freezetrain import __version__
from freezetrain.errors import UserError
from freezetrain.files import UNFINISHED, remove_unfinished, whole, write_json
from freezetrain.recipe import yaml12

_RECIPE = "recipe.yaml"

_RESULTS = "results.json"


@dataclass(frozen=True)
class Outcome:
    """Results for machines, and what people look at (text or rich renderables, in order)."""

    results: dict[str, Any]
    display: Sequence[Any] = field(default_factory=tuple)
    passed: bool = True


def default_folder(verb: str) -> Path:
    return Path("runs") / f"{verb}-{datetime.now():%Y%m%d-%H%M%S}"


def claim(folder: Path, recipe: Any, resumable: bool = False, grows: Sequence[str] = ()) -> Path:
    """Make ``folder`` this run's own and write the recipe into it.

    A folder that holds anything already is refused, except, where the job is ``resumable``, one
    that a run of the same recipe left, but for what is ``CHANGEABLE`` and for fields that the job
    ``grows`` by; the recipe that it began with stays. Raises UserError, also where it cannot be
    written.
    """
    told = asdict(recipe)
    recipe_file = folder / _RECIPE
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give --out a folder")
    # A start that was killed may have left an unfinished recipe.
    if folder.is_dir() and any(path.suffix != UNFINISHED for path in folder.iterdir()):
        if not resumable or not recipe_file.is_file():
            raise UserError(
                f"{folder} is not empty, and nothing in it is overwritten; give --out a new folder"
            )
        earlier = _read_recipe(recipe_file)
        if changed := [
            name
            for name in differences(earlier, told)
            if name not in changeable(earlier) and name.partition(".")[0] not in grows
        ]:
            raise UserError(
                f"{folder} holds another run, with another {', '.join(changed[:5])}; give --out a "
                "new folder, or the same recipe to resume it"
            )
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(recipe_file)
        with whole(recipe_file) as new:
            new.write_text(yaml12.dump(told), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; choose another --out"
        ) from error
    return folder


def _read_recipe(path: Path) -> Any:
    try:
        return yaml12.load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is damaged, so that the run cannot be told; give --out a new folder"
        ) from error


@contextmanager
def claimed(
    folder: Path, recipe: Any, resumable: bool = False, grows: Sequence[str] = ()
) -> Iterator[Path]:
    """:func:`claim`, held against other processes, and undone if bad input ends the job early.

    That is, before it left anything. Where the job has grown, the new recipe takes the place of the
    earlier one, and results.json, which is to be made anew, goes; bad input brings both back.
    """
    existed = folder.exists()
    claim(folder, recipe, resumable, grows)
    try:
        with _held(folder), _grown(folder, recipe, grows):
            yield folder
    except InUseError:
        raise
    except UserError:
        if os.listdir(folder) == [_RECIPE]:
            (folder / _RECIPE).unlink()
            if not existed:
                folder.rmdir()
        raise


@contextmanager
def _grown(folder: Path, recipe: Any, grows: Sequence[str]) -> Iterator[None]:
    """Write a recipe that differs from the earlier one by what the job grows by."""
    path, results = folder / _RECIPE, folder / _RESULTS
    told = asdict(recipe)
    changed = [name.partition(".")[0] for name in differences(_read_recipe(path), told)]
    if not set(changed) & set(grows):
        yield
        return
    earlier = path.read_text(encoding="utf-8"), results.is_file() and results.read_bytes()
    # In place: the file is what holds the folder against other processes.
    path.write_text(yaml12.dump(told), encoding="utf-8")
    results.unlink(missing_ok=True)
    try:
        yield
    except UserError:
        path.write_text(earlier[0], encoding="utf-8")
        if earlier[1]:
            results.write_bytes(earlier[1])
        raise


class InUseError(UserError):
    """Another process is at work in the folder, which is to be left alone."""


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


def write_outcome(folder: Path, verb: str, outcome: Outcome) -> None:
    """Write results.json whole or not at all."""
    about = {"freezetrain": __version__, "verb": verb, "passed": outcome.passed}
    write_json(folder / _RESULTS, {**about, **outcome.results})


def differences(earlier: Any, now: Any, name: str = "") -> list[str]:
    """Dotted names of the fields in which two recipes differ."""
    if not (isinstance(earlier, dict) and isinstance(now, dict)):
        return [] if earlier == now else [name or "recipe"]
    found = []
    for key in sorted({*earlier, *now}):
        found += differences(earlier.get(key), now.get(key), f"{name}.{key}" if name else key)
    return found


CHANGEABLE = ("engine.devices", "optimization.micro_batch", "workers", "cache")


def changeable(earlier: Any) -> tuple[str, ...]:
    """Those of ``CHANGEABLE`` that may change in a run that began with the recipe ``earlier``.

    Without ``batch_tokens`` the micro-batch is the optimizer step, and must stay.
    """
    settings = earlier.get("optimization") if isinstance(earlier, dict) else None
    told = isinstance(settings, dict) and settings.get("batch_tokens") is not None
    return tuple(name for name in CHANGEABLE if told or name != "optimization.micro_batch")
