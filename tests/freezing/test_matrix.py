"""A freeze under every engine, precision and optimizer: real process groups on the CPU.

What was seen makes docs/engines.md. To write it anew, run these tests with WRITE_DOCS=1 set.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import matrix_table
import pytest
from matrix_cells import WORLDS, Cell, cells
from matrix_checks import Outcomes, check

import freezetrain

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
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> Outcomes:
    folder = tmp_path_factory.mktemp("matrix")
    worker = Path(__file__).with_name("matrix_worker.py")
    paths = [Path(freezetrain.__file__).parents[1], Path(__file__).parents[1] / "support"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, worker, folder],
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    return Outcomes(folder)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_cell(outcomes: Outcomes, cell: Cell) -> None:
    reason = outcomes.not_run(cell)
    if reason:
        pytest.skip(reason)
    check(cell, outcomes)


@pytest.mark.parametrize(
    "cell",
    [cell for cell in CELLS if cell.optimizer == "AdamW" and not cell.variant],
    ids=lambda cell: cell.name,
)
def test_verify_after_an_evaluation(outcomes: Outcomes, cell: Cell) -> None:
    """A forward pass without backward may leave weights gathered, which is no change."""
    assert outcomes.of(cell)[0].facts["after_evaluation"] == ""


@pytest.mark.parametrize(("what", "message"), REFUSED.items())
def test_refused(outcomes: Outcomes, what: str, message: str) -> None:
    for rank in range(2):
        assert re.search(message, outcomes.refused(rank)[what])


def test_documentation_holds_the_table(outcomes: Outcomes) -> None:
    refused = outcomes.refused(0)
    assert set(refused) == set(REFUSED)
    made = matrix_table.render({cell: mark(outcomes, cell) for cell in CELLS}, refused)
    # A row of what cannot run on this machine stays as another has written it.
    unseen = {cell.variant for cell in CELLS if outcomes.not_run(cell)}
    if os.environ.get("WRITE_DOCS"):
        assert not unseen, f"{unseen} cannot run on this machine, so that the table lacks it"
        DOCS.write_text(made, encoding="utf-8")
    written = DOCS.read_text(encoding="utf-8") if DOCS.exists() else ""
    assert seen(written, unseen) == seen(made, unseen), (
        f"{DOCS.name} is not what these tests saw: look at the difference, and if it is meant, "
        "write it anew by running this file with WRITE_DOCS=1 in the environment"
    )


def mark(outcomes: Outcomes, cell: Cell) -> str:
    if outcomes.not_run(cell):
        return matrix_table.NOT_RUN
    try:
        check(cell, outcomes)
    except AssertionError:
        return matrix_table.FAILS
    return matrix_table.PASSES


def seen(text: str, unseen: set[str]) -> list[str]:
    return [line for line in text.splitlines() if not any(f"| {what} |" in line for what in unseen)]
