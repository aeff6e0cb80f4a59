"""Public names of a room, each loaded on first use from where its ``__init__.pyi`` says it is.

As the package lazy_loader does, without it: freezing needs torch, numpy and safetensors alone.
"""

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from freezetrain.extras import MissingPackageError


def public_names(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of ``package``, whose code is in ``file``.

    Beside that stands ``__init__.pyi`` with lines such as ``from .handle import Freeze as Freeze``.
    """
    stub = Path(file).with_suffix(".pyi")
    homes = {
        alias.name: f"{package}.{statement.module}"
        for statement in ast.parse(stub.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        vars(import_module(package))[name] = value  # so that it is not looked for again
        return value

    def listed() -> list[str]:
        """Without those of rooms whose extra is missing: ``help`` loads all that it finds here."""
        rooms = {home for home in homes.values() if _is_room(home, package, file)}
        missing = {room for room in rooms if not _can_be_loaded(room)}
        return sorted(name for name, home in homes.items() if home not in missing)

    return load, listed, sorted(homes)


def _is_room(home: str, package: str, file: str) -> bool:
    return (Path(file).parent / home.removeprefix(f"{package}.") / "__init__.py").exists()


def _can_be_loaded(room: str) -> bool:
    """Whether the packages are there that ``room`` asks for; it loads none of them."""
    try:
        import_module(room)
    except MissingPackageError:
        return False
    return True
