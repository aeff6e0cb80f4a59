"""One of two ranks is killed with SIGKILL; both go on from the last complete checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from forked_workers import run_worker
from frozen_reference import TinyLM
from safetensors.torch import load_file
from zero_checkpoint_cells import uneven_region
from zero_kill_cells import CELLS, KILLED, STEPS, Cell

from freezetrain.freezing import compare_weights

COMPLETE = 4  # steps of the last checkpoint that both ranks wrote


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    run_worker("zero_kill_worker.py", folder)
    return folder


def losses(folder: Path, attempt: str, rank: int) -> dict[int, float]:
    lines = (folder / f"losses {attempt} {rank}").read_text().splitlines()
    return dict(json.loads(line) for line in lines)


@pytest.mark.parametrize("cell", CELLS, ids=", ".join)
def test_goes_on_as_if_never_killed(folder: Path, cell: Cell) -> None:
    here, whole = cell.path(folder), cell.whole(folder)
    left = json.loads((here / "left.json").read_text())
    half = ["step 6"] if cell.moment == "save" else []
    assert left == {"complete": f"step {COMPLETE}", "written": ["step 2", "step 4", *half]}

    uninterrupted = losses(whole, "whole", 0)
    assert list(uninterrupted) == list(range(STEPS))
    killed, resumed = losses(here, "killed", 1), losses(here, "resumed", 1)
    assert list(killed) == list(range(KILLED + (cell.moment == "save")))
    assert list(resumed) == list(range(COMPLETE, STEPS))
    assert uninterrupted | killed | resumed == uninterrupted

    export, expected = (load_file(path / "export.safetensors") for path in (here, whole))
    assert all(torch.equal(export[name], value) for name, value in expected.items())
    base = {name: value.detach() for name, value in TinyLM().float().named_parameters()}
    region = uneven_region(TinyLM())
    compared = compare_weights(base, export, region)
    assert (compared.checked, compared.moved) == (region.count, 0)
    assert compared.changed == compared.trainable
