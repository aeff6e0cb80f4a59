"""A freeze and a pull under every engine, precision and optimizer: real process groups on the CPU.

By default one cell for each engine in fp32 and in bf16; all of them, and docs/engines.md, which is
made of what was seen, with ``--exhaustive``. To write it anew: ``WRITE_DOCS=1`` beside that.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matrix_table
import pytest
from forked_ranks import RanksError, run_ranks
from matrix_cells import BOTH, FREEZE, WORLDS, Cell, Outcome, cells, runs_in
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

TOGETHER = 6  # cells; ranks of its own take each as long again as its training does
Run = Callable[[Cell], list[Outcome] | str]


@pytest.fixture(scope="module")
def run(request, tmp_path_factory) -> Run:
    """Outcomes of all ranks; or why this machine cannot run the cell.

    Cells of one engine, of those that were chosen, share their ranks. Where one of them fails, each
    gets ranks of its own.
    """
    items = request.session.items
    chosen = [i.callspec.params["cell"] for i in items if getattr(i, "function", 0) is test_cell]
    known: dict[Cell, list[Outcome] | str] = {}
    apart: set[Cell] = set()

    def together(cells: list[Cell]) -> None:
        folders = {cell: tmp_path_factory.mktemp("cell") for cell in cells}
        ranks = run_ranks("matrix_runs:run_all", folders, world=cells[0].world)
        for cell, *outcomes in zip(cells, *ranks, strict=True):
            known[cell] = outcomes[0] if isinstance(outcomes[0], str) else outcomes

    def outcomes(cell: Cell) -> list[Outcome] | str:
        if cell not in known:
            others = [c for c in chosen if same_ranks(c, cell) and c not in {cell, *known, *apart}]
            cells = [cell] if cell in apart else [cell, *others[: TOGETHER - 1]]
            try:
                together(cells)
            except RanksError:
                if len(cells) == 1:
                    raise
                apart.update(cells)
                together([cell])
        return known[cell]

    return outcomes


def same_ranks(one: Cell, other: Cell) -> bool:
    return (one.engine, one.world) == (other.engine, other.world)


def default(cell: Cell) -> bool:
    """One cell for each engine in fp32 and in bf16, and one with a pull beside the freeze."""
    if cell.variant or cell.optimizer != "AdamW":
        return False
    first = "fp32" if runs_in(cell.engine, "fp32") else "bf16"
    precisions = {FREEZE: ("fp32", "bf16"), BOTH: (first,)}
    plain = cell.precision in precisions.get(cell.held, ())
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
    if cell.optimizer == "AdamW" and not cell.variant and cell.freezes:
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
    assert re.search(message, refused[what])


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_documentation_holds_the_table(run: Run, refused: dict[str, str]) -> None:
    writes = bool(os.environ.get("WRITE_DOCS"))
    # Where the page is only looked at, the default run has seen the default cells pass.
    marks = {
        cell: matrix_table.PASSES if default(cell) and not writes else mark(run, cell)
        for cell in CELLS
    }
    not_run = [cell.name for cell in CELLS if marks[cell] == matrix_table.NOT_RUN]
    if writes:
        assert not not_run, f"{not_run} cannot run on this machine, so that the table lacks them"
    # What cannot run on this machine stays as another has written it.
    marks |= {cell: matrix_table.PASSES for cell in CELLS if cell.name in not_run}
    page = matrix_table.render(marks, refused)
    if writes:
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
