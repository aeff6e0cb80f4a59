"""docs/trainers_compared.md: others' cells have their sources, ours tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "trainers_compared.md").read_text(encoding="utf-8")
LINKS = dict(re.findall(r"^\[([a-z0-9-]+)\]: (https://github\.com/\S+)$", PAGE, re.MULTILINE))


def table(heading: str) -> dict[str, list[str]]:
    """First cell of each row below the line that begins with ``heading`` -> its other cells."""
    lines = iter(PAGE.splitlines())
    next(line for line in lines if line.startswith(heading))
    rows = {}
    for line in lines:
        if not line.startswith("|"):
            break
        name, *cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        rows[name] = cells
    del rows["---|---" + "|---" * (len(cells) - 1)]
    return rows


TRAINERS = table("| | axolotl | ")
TESTS = table("| | tests |")


def names_in(path: Path) -> set[str]:
    """Names of the test functions of a file, without importing it."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {item.name for item in body if isinstance(item, ast.FunctionDef)}


def exists(test: str) -> bool:
    """Whether ``path::function`` is a test that pytest collects."""
    path, _, name = test.partition("::")
    file = ROOT / path
    named = name.startswith("test_") and file.name.startswith("test_")
    return named and file.is_file() and name in names_in(file)


def test_rows_are_whole():
    assert len(TRAINERS) >= 10
    assert all(len(cells) == 7 and all(cells) for cells in TRAINERS.values())


@pytest.mark.parametrize("row", TRAINERS)
def test_others_have_a_source_for_what_is_said_of_them(row):
    for cell in TRAINERS[row][:-1]:
        named = re.findall(r"\]\[([a-z0-9-]+)\]", cell)
        assert named or cell.startswith("not found"), cell
        assert not set(named) - LINKS.keys(), cell


def test_each_source_is_used():
    assert LINKS.keys() == set(re.findall(r"\]\[([a-z0-9-]+)\]", PAGE))


def test_each_cell_of_ours_has_its_tests():
    assert list(TESTS) == [row for row, cells in TRAINERS.items() if cells[-1] != "none"]


@pytest.mark.parametrize("row", TESTS)
def test_tests_exist(row):
    (cell,) = TESTS[row]
    named = re.findall(r"`([^`]+)`", cell)
    assert named
    assert ", ".join(f"`{test}`" for test in named) == cell
    assert [test for test in named if not exists(test)] == []


def test_what_is_no_test_is_told():
    here = "tests/test_trainers_compared.py"
    assert exists(f"{here}::test_what_is_no_test_is_told")
    assert not exists(f"{here}::test_that_is_not_there")
    assert not exists(f"{here}::names_in")
    assert not exists("tests/test_nowhere.py::test_tests_exist")
