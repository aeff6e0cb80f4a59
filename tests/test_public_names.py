"""Public names, listed in each room's ``__init__.pyi``, load on first use under their own names."""

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import freezetrain

ROOT = Path(freezetrain.__file__).parent
PUBLIC = [
    pytest.param(package, statement.module, alias.name, id=f"{package}.{alias.name}")
    for stub in sorted(ROOT.rglob("__init__.pyi"))
    for package in [".".join(("freezetrain", *stub.parent.relative_to(ROOT).parts))]
    for statement in ast.parse(stub.read_text()).body
    if isinstance(statement, ast.ImportFrom)
    for alias in statement.names
]


@pytest.mark.parametrize(("package", "home", "name"), PUBLIC)
def test_a_public_name_loads_and_no_module_bears_it(package, home, name):
    room = import_module(package)
    assert getattr(room, name) is getattr(import_module(f"{package}.{home}"), name)
    assert name in room.__all__
    # Importing a module of that name would put it in the place of what is public.
    assert find_spec(f"{package}.{name}") is None


@pytest.mark.parametrize(
    "package", sorted({package for package, _, _ in (p.values for p in PUBLIC)})
)
def test_another_name_is_no_attribute(package):
    with pytest.raises(AttributeError, match="nothing"):
        import_module(package).nothing  # noqa: B018
