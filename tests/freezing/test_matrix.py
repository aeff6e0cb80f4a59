"""A freeze under every engine, precision and optimizer: real process groups on the CPU.

By default one cell for each engine in fp32 and in bf16; all of them, and docs/engines.md, which is
made of what was seen, with ``--exhaustive``. To write it anew: ``WRITE_DOCS=1`` beside that.
"""

import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import matrix_table
import pytest
from forked_ranks import RanksError, run_ranks
from matrix_cells import WORLDS, Cell, Outcome, cells
from matrix_checks import check

pytest.importorskip("deepspeed")

DOCS = Path(__file__).parents[2] / "docs" / "engines.md"
CELLS = [cell for world in WORLDS for cell in cells(world)]
REFUSED = {
    "FSDP1 (FullyShardedDataParallel)": "cannot freeze under FullyShardedDataParallel",
    "FSDP2 with shard_placement_fn": r"placed as \(Shard\(dim=1\),\).*without shard_placement_fn",
    "DDP with a PowerSGD hook": "DDP communication hook powerSGD_hook",
    "ZeroRedundancyOptimizer": "cannot freeze under ZeroRedundancyOptimizer",
    "DeepSpeed stage 0 in bf16": "stage 0 in 16 bits",
    "DeepSpeed stage 0 in fp16": "stage 0 in 16 bits",
    "ZeRO-2 with round_robin_gradients": "round_robin_gradients|lays its shards out in another way",
}
"""What was tried -> a pattern in the message."""

NO_FP16 = "fp16 is not supported on your device"  # as DeepSpeed says it

Run = Callable[[Cell], list[Outcome] | str]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """Outcomes of all ranks; or why this machine cannot run the cell."""

    @cache
    def outcomes(cell: Cell) -> list[Outcome] | str:
        folder = tmp_path_factory.mktemp("cell")
        ranks = run_ranks("matrix_runs:run", cell, folder, world=cell.world)
        return ranks[0] if isinstance(ranks[0], str) else ranks

    return outcomes


def default(cell: Cell) -> bool:
    """One cell for each engine in fp32 and in bf16."""
    plain = not cell.variant and cell.optimizer == "AdamW" and cell.precision in ("fp32", "bf16")
    return plain and cell.world == (4 if "HSDP" in cell.engine else 2)


def marked(cell: Cell) -> Any:
    marks = () if default(cell) else (pytest.mark.exhaustive,)
    return pytest.param(cell, id=cell.name, marks=marks)


@pytest.mark.parametrize("cell", [marked(cell) for cell in CELLS])
def test_cell(run: Run, cell: Cell) -> None:
    ranks = run(cell)
    if isinstance(ranks, str):
        pytest.skip(ranks)
    check(cell, ranks)
    if cell.optimizer == "AdamW" and not cell.variant:
        # A forward pass without backward may leave weights gathered, which is no change.
        assert ranks[0].facts["after_evaluation"] == ""


@pytest.fixture(scope="module")
def refused() -> dict[str, str]:
    first, second = run_ranks("matrix_runs:refusals")
    assert first == second
    assert set(first) == set(REFUSED)
    return first


@pytest.mark.parametrize(("what", "message"), REFUSED.items())
def test_refused(refused: dict[str, str], what: str, message: str) -> None:
    if NO_FP16 in refused[what]:
        pytest.skip("DeepSpeed finds that this processor does not compute in fp16")
    assert re.search(message, refused[what])


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_documentation_holds_the_table(run: Run, refused: dict[str, str]) -> None:
    marks = {cell: mark(run, cell) for cell in CELLS}
    not_run = [cell.name for cell in CELLS if marks[cell] == matrix_table.NOT_RUN]
    if os.environ.get("WRITE_DOCS"):
        assert not not_run, f"{not_run} cannot run on this machine, so that the table lacks them"
    # What cannot run on this machine stays as another has written it.
    marks |= {cell: matrix_table.PASSES for cell in CELLS if cell.name in not_run}
    refused = {
        what: refused["DeepSpeed stage 0 in bf16"] if NO_FP16 in message else message
        for what, message in refused.items()
    }
    page = matrix_table.render(marks, refused)
    if os.environ.get("WRITE_DOCS"):
        DOCS.write_text(page, encoding="utf-8")
    assert DOCS.read_text(encoding="utf-8") == page, (
        f"{DOCS.name} is not what these tests saw: look at the difference, and if it is meant, "
        "write it anew by running this file with --exhaustive and WRITE_DOCS=1 in the environment"
    )


def mark(run: Run, cell: Cell) -> str:
    try:
        ranks = run(cell)
        if isinstance(ranks, str):
            return matrix_table.NOT_RUN
        check(cell, ranks)
    except (AssertionError, RanksError):
        return matrix_table.FAILS
    return matrix_table.PASSES
