"""Deliberate faults on 2 ranks: the audit finds each within one interval, and tells every rank."""

import json
import re
from pathlib import Path

import pytest
from forked_workers import run_worker
from frozen_reference import TinyLM
from zero_checkpoint_cells import uneven_region
from zero_fault_cells import (
    CELLS,
    COPY,
    MASTER,
    NOT_MASKED,
    RANKS_DIFFER,
    SKIPPED,
    STEPS,
    WRITTEN,
    Cell,
)

COPY_OF = {"fp32": "the torch.float32 copy of ", "bf16": "the torch.bfloat16 copy of "}


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> list[list[str | None]]:
    """Of each rank, what it was told in each cell. That all came to an end: no rank hangs."""
    folder: Path = tmp_path_factory.mktemp("faults")
    run_worker("zero_faults_worker.py", folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("cell", CELLS, ids=", ".join)
def test_every_rank_is_told_in_time(told: list[list[str | None]], cell: Cell) -> None:
    first, second = (messages[CELLS.index(cell)] for messages in told)
    assert first is not None
    assert first == second
    if cell.fault == RANKS_DIFFER:
        assert "the ranks start with different frozen values under DDP" in first
    elif not STEPS[cell.fault]:
        found = re.match(r"under (.*), the optimizer's copy of (?:module\.)?(\S+) does", first)
        assert found is not None, first
        assert cell.engine in found[1]
        assert found[2] in uneven_region(TinyLM())
    else:
        assert_names_the_entry(first, cell)


def assert_names_the_entry(message: str, cell: Cell) -> None:
    pattern = r"rank (\d), step (\d): (.*?)(?:module\.)?([\w.]+)\[(\d+)\] is (.*)"
    found = re.match(pattern, message)
    assert found is not None, message
    rank, step, what, name, index, happened = found.groups()
    assert int(step) == STEPS[cell.fault]
    assert uneven_region(TinyLM())[name].mask().flatten()[int(index)]
    if cell.fault in (SKIPPED, NOT_MASKED):
        assert what == "the gradient of "
        assert "not zero" in happened
    else:
        assert what == (COPY_OF[cell.dtype] if cell.fault == COPY else "")
        assert "frozen and changed from" in happened
    if cell.fault in (COPY, MASTER):
        assert (rank, name, int(index)) == ("1", *WRITTEN)
        start = TinyLM().float().get_parameter(name).detach()
        value = float(happened.removeprefix("frozen and changed from ").split()[0])
        assert value == pytest.approx(float(start.flatten()[int(index)]), rel=1e-2)
