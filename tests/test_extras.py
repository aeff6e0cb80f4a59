"""Each extra brings what its import paths need; what is missing is named with its extra."""

import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from extras_used import WITHIN

from freezetrain import UserError, extras

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIRED = {"core": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
FOR_DEVELOPERS = {"dev", "docs", "test"}
IMPORTED_AS = {"pyyaml": "yaml", "mlflow-skinny": "mlflow", "lion-pytorch": "lion_pytorch"}


def own(extra: str) -> set[str]:
    """The distributions that an extra names itself."""
    names = {re.match(r"[\w.-]+", line).group() for line in REQUIRED[extra]}
    return names - {"freezetrain"}


def within(extra: str) -> set[str]:
    """And those of the extras in it."""
    inner = re.findall(r"freezetrain\[([\w,]+)\]", " ".join(REQUIRED[extra]))
    return own(extra).union(*(within(name) for names in inner for name in names.split(",")))


def test_the_core_brings_three_packages():
    assert own("core") == {"torch", "numpy", "safetensors"}


def test_what_an_extra_brings_is_what_is_looked_for():
    assert set(REQUIRED) - FOR_DEVELOPERS - {"core"} == set(extras.EXTRAS)
    for extra, packages in extras.EXTRAS.items():
        brought = within(extra) if extra == "train" else own(extra)
        assert sorted(packages) == sorted(IMPORTED_AS.get(name, name) for name in brought), extra


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(extra, marks=() if extra == "evaluation" else pytest.mark.exhaustive)
        for extra in WITHIN
        if extra != "train"  # with which all other tests run
    ],
)
def test_import_paths_need_no_more_than_their_extra(extra):
    """In a process that sees nothing else; the workflow does the same in real environments."""
    names = sorted({*own("core"), *(within(extra))})
    used = f"import extras_used, only_these; only_these.only({names}); extras_used.use({extra!r})"
    done = subprocess.run(
        [sys.executable, "-c", used],
        capture_output=True, text=True, check=False, cwd=ROOT / "tests" / "support",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "freezetrain: the command line needs the packages" in done.stderr
    assert "install them with pip install 'freezetrain[train]'\n" in done.stderr


@pytest.mark.parametrize("there", ["nothing", "a folder of that name"])
def test_the_sentence_on_a_package_that_is_not_installed(there, monkeypatch, tmp_path):
    if there != "nothing":
        (tmp_path / "no_such_package").mkdir()
        monkeypatch.syspath_prepend(str(tmp_path))
        assert find_spec("no_such_package") is not None
    monkeypatch.setitem(extras.EXTRAS, "more", ("json", "no_such_package"))
    with pytest.raises(UserError) as refused:
        extras.require("more", "this field", ", or leave it out")
    assert str(refused.value) == (
        "this field needs the package no_such_package, which is not installed; install it with "
        "pip install 'freezetrain[more]', or leave it out"
    )
    assert isinstance(refused.value, ModuleNotFoundError)
    assert refused.value.name == "no_such_package"
    monkeypatch.setitem(extras.EXTRAS, "more", ("json",))
    extras.require("more", "this field")


def test_the_sentence_on_a_package_that_cannot_be_imported(monkeypatch, tmp_path):
    (tmp_path / "broken_package.py").write_text("from json import nothing_like_this")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(extras.EXTRAS, "more", ("broken_package",))
    with (
        pytest.raises(
            UserError, match=r"cannot be imported \(cannot import name 'nothing_like_thi"
        ),
        extras.imported_for("more", "this field"),
    ):
        import broken_package  # noqa: F401


def test_importing_freezetrain_loads_nothing():
    loaded = (
        "import sys; was = set(sys.modules); import freezetrain; print(*set(sys.modules) - was)"
    )
    done = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
    )
    assert {name.partition(".")[0] for name in done.stdout.split()} <= sys.stdlib_module_names | {
        "freezetrain"
    }
