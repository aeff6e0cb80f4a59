"""The notebook docs/tutorial.ipynb: its code runs, and its outputs are those of its code."""

import getpass
import json
import os
import re
import socket
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from forked_ranks import run_ranks

NOTEBOOK = Path(__file__).parent.parent / "docs" / "tutorial.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
SMALL = {
    "SCORED": ["en", "ko"],
    "WATCHED": ["en", "ko", "zh"],
    "SEQUENCES": 4,
    "STEPS": 2,
    "DOCUMENTS": 1,
}


def source(cell: dict) -> str:
    return "".join(cell["source"])


def printed(cell: dict) -> str:
    streams = [each for each in cell["outputs"] if each["output_type"] == "stream"]
    assert {each["name"] for each in streams} <= {"stdout"}
    return "".join(text for each in streams for text in each["text"])


def pictures(cell: dict) -> int:
    return sum("image/png" in each.get("data", {}) for each in cell["outputs"])


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]{2,}", text))


def test_its_outputs_are_there_and_name_nothing_of_a_machine():
    (settings,) = (cell for cell in CODE if "parameters" in cell["metadata"].get("tags", ()))
    for cell in CODE:
        assert cell["execution_count"] == CODE.index(cell) + 1, "run from top to bottom"
        shows = re.search(r"print\(|plt\.show\(", source(cell))
        assert bool(cell["outputs"]) == bool(shows), source(cell)
        assert "error" not in {each["output_type"] for each in cell["outputs"]}
    assert not settings["outputs"]
    assert sum(map(pictures, CODE)) == 2
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 300_000
    told = "\n".join(map(printed, CODE))
    for here in (r"/home/", r"/root", r"/tmp", r"/Users/", r"[A-Z]:\\\\"):
        assert not re.search(here, told), here
    for name in (getpass.getuser(), socket.gethostname(), str(Path.home()), os.getcwd()):
        assert name not in told


def test_its_code_runs_and_prints_what_it_shows():
    ((outputs, left),) = run_ranks(execute, [source(cell) for cell in CODE], world=1, group=False)
    assert left == {**SMALL, "moved": 0, "changed": True, "evaluated": [0, 1, 2]}
    for cell, output in zip(CODE, outputs, strict=True):
        assert bool(output) == bool(printed(cell)), source(cell)
        assert words(output) <= words(printed(cell)), source(cell)


def execute(rank: int, world: int, sources: list[str]) -> tuple[list[str], dict]:
    """What each cell prints with small settings, and what they leave."""
    import matplotlib

    matplotlib.use("agg")
    names: dict = {}
    outputs = []
    for code in sources:
        with redirect_stdout(StringIO()) as out:
            exec(code, names)
        outputs.append(out.getvalue())
        if "SCORED" in names and "torch" not in names:
            assert SMALL.keys() < names.keys()
            names.update(SMALL)
    compared = names["compare_weights"](
        names["before"], dict(names["frozen_model"].named_parameters()), names["region"]
    )
    evaluated = [each.step for each in names["frozen"].evaluations]
    left = {name: names[name] for name in SMALL}
    found = {"moved": compared.moved, "changed": compared.changed > 0, "evaluated": evaluated}
    return outputs, left | found
