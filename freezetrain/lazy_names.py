"""Public names of a room, each loaded on first use from where its ``__init__.pyi`` says it is.

As the package lazy_loader does, without it: freezing needs torch, numpy and safetensors alone.
"""

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


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

    return load, lambda: sorted(homes), sorted(homes)
