"""Where files that users give are opened: what goes wrong in one becomes one sentence."""

import json
import logging
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

from freezetrain.errors import CheckError, Preempted, UserError

VERBOSE = "FREEZETRAIN_VERBOSE"
"""Environment variable that ``--verbose`` sets: libraries' reports and tracebacks are shown."""

MAX_DEPTH = 100  # of lists and mappings within one another, in YAML and JSON

_QUOTED_ERROR = re.compile(r"\w+Error: (.+)")  # after "validation of the field failed:"

_WRONG_TYPE = re.compile(r"'(\w+)' object (?:has no attribute|is not|cannot be|does not support)")

_LONGEST = 300  # characters of a library's sentence that are repeated in ours


def verbose() -> bool:
    """Whether whole reports of libraries are to be shown."""
    return os.environ.get(VERBOSE, "0") not in ("", "0")


@contextmanager
def reading(what: str, path: str | os.PathLike[str], remedy: str) -> Iterator[None]:
    """Whatever is raised inside, while what the user gave at ``path`` is read, as a UserError.

    It says ``cannot read WHAT PATH: REASON; REMEDY``. ``what``: ``"the tokenizer"``; ``remedy``:
    what the user can do, as ``"copy it again"``. The errors of :mod:`freezetrain.errors` pass as
    they are. What libraries warn of or log meanwhile is shown with ``--verbose`` only, and so is
    the traceback. Nothing of ours that can be wrong by itself belongs inside.
    """
    try:
        with libraries_silenced():
            yield
    except (UserError, CheckError, Preempted):
        raise
    except Exception as error:
        raise UserError(f"cannot read {what} {path}: {reason(error)}; {remedy}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of a library in Rust, as tokenizers
            raise
        raise UserError(f"cannot read {what} {path}: {reason(error)}; {remedy}") from error


def reason(error: BaseException) -> str:
    """What ``error`` says of a file, in one line without a full stop at its end."""
    match error:
        case RecursionError():
            return "it is nested too deeply"
        case MemoryError():
            return "it needs more memory than there is"
        case JSONDecodeError():
            return f"it is not JSON ({error.msg}, line {error.lineno}, column {error.colno})"
        case UnicodeDecodeError():
            return f"it is not text in UTF-8 (byte {error.start})"
        case ValueError() if str(error).startswith("Exceeds the limit"):  # of Python's int
            return "it holds a number of too many digits"
        case UnpicklingError():
            return "it is a pickle that holds more than tensors, which is not run"
        case KeyError(args=(str(name),)) if name.isidentifier():
            return f"{name!r} is missing or not known"
        case TypeError() | AttributeError() if match := _WRONG_TYPE.match(str(error)):
            return f"it holds a value of type {match[1]} where another is expected"
        case OSError(strerror=str(strerror)):
            return strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    quoted = _QUOTED_ERROR.match(lines[1]) if len(lines) > 1 and lines[0].endswith(":") else None
    said = (quoted[1] if quoted else lines[0]).rstrip(".:;")
    if len(said) > _LONGEST:
        said = f"{said[:_LONGEST]}…"
    if type(error).__name__ == "SafetensorError":  # by its name: not all who read files need it
        return f"it is truncated or not a safetensors file ({said})"
    plain = isinstance(error, OSError | ValueError | RuntimeError | ImportError)
    if said and (plain or quoted or type(error) is Exception):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def read_json(path: str | os.PathLike[str], what: str, remedy: str) -> Any:
    """The content of a JSON file of finite numbers, nested at most ``MAX_DEPTH`` deep.

    Raises UserError as :func:`reading`.
    """
    with reading(what, path, remedy):
        return parse_json(read_text(path))


def read_text(path: str | os.PathLike[str], encoding: str = "utf-8") -> str:
    """The text of a file; OSError for a pipe or a device, which may have no end."""
    if not is_file(path):
        raise FileNotFoundError(f"there is {'no file' if os.path.exists(path) else 'nothing'}")
    return Path(path).read_text(encoding=encoding)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file; a name that no file system takes is none."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def parse_json(text: str | bytes) -> Any:
    """As :func:`json.loads`; ValueError for NaN and infinity, and for what is nested too deeply."""
    content = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    if _deeper(content, MAX_DEPTH):
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    return content


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _deeper(content: Any, depth: int) -> bool:
    """Whether lists and mappings lie within one another more than ``depth`` deep."""
    level = [content]
    for _ in range(depth):
        level = [
            item
            for value in level
            if isinstance(value, list | dict)
            for item in (value.values() if isinstance(value, dict) else value)
            if isinstance(item, list | dict)
        ]
        if not level:
            return False
    return True


@contextmanager
def libraries_silenced() -> Iterator[None]:
    """Keep back what transformers logs and libraries warn of, unless all is to be shown."""
    if verbose():
        yield
        return
    with quiet("transformers"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Keep back what a library's logger says, by its name: not all need the library.

    Its level stays: when one changes, Python looks at all loggers, of which torch has hundreds, and
    that takes longer than many a file that is read.
    """
    logger = logging.getLogger(name)
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [logging.NullHandler()], False
    try:
        yield
    finally:
        own = logger.handlers[1:]  # of a library that was imported meanwhile
        logger.handlers, logger.propagate = [*handlers, *own], propagate and not own
