"""A frozen DeepSpeed run goes on from its checkpoint: same ranks, other ranks, other stage."""

import json
from pathlib import Path

import pytest
import torch
from forked_workers import run_worker
from frozen_reference import TinyLM, adamw
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from zero_checkpoint_cells import CELLS, REFUSED, SOURCES, Cell, beside, uneven_region

from freezetrain.freezing import compare_weights, freeze

COPIES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# What adding numbers up in another order changes. Without the optimizer's state, or from other
# masters, the runs would be 1e-3 apart in fp32, and the losses 1e-1 in either.
LOSSES = {"fp32": 1e-6, "bf16": 5e-3}
WEIGHTS = {"fp32": 1e-6, "bf16": 1e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("zero")
    run_worker("zero_checkpoints_worker.py", folder)
    return folder


def notes(path: Path, key: str) -> list:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()[key])


def stored() -> dict[str, Tensor]:
    return {name: value.detach() for name, value in TinyLM().float().named_parameters()}


def expected_digest() -> str:
    """Of the base as it is stored, from a freeze on one device."""
    model = TinyLM().float()
    return freeze(model, adamw(model.parameters()), uneven_region(model)).digest


def assert_frozen(weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Masters hold the stored values to the last bit, copies those rounded to their dtype."""
    base, masks = stored(), uneven_region(TinyLM()).resolve(TinyLM())
    assert masks
    for frozen in masks:
        mask, start = frozen.entries.mask(), base[frozen.name]
        assert torch.equal(weights[f"master.{frozen.name}"][mask], start[mask])
        copy = weights[f"copy.{frozen.name}"]
        assert copy.dtype == dtype
        assert torch.equal(copy[mask], start[mask].to(dtype))


@pytest.mark.parametrize("cell", CELLS, ids=Cell.name)
def test_goes_on_as_if_never_stopped(folder: Path, cell: Cell) -> None:
    whole = beside(folder, cell.source, cell.dtype, "run")
    losses = torch.tensor(notes(whole, "losses"))
    resumed = torch.tensor(notes(cell.path(folder), "losses"))
    uninterrupted, weights = load_file(whole), load_file(cell.path(folder))
    assert_frozen(uninterrupted, COPIES[cell.dtype])
    assert_frozen(weights, COPIES[cell.dtype])
    if cell.universal:
        for name, value in uninterrupted.items():
            tolerance = WEIGHTS[cell.dtype] if name.startswith("master.") else 1e-2
            torch.testing.assert_close(weights[name], value, rtol=0, atol=tolerance)
        torch.testing.assert_close(resumed, losses, rtol=0, atol=LOSSES[cell.dtype])
    else:
        assert resumed.tolist() == losses.tolist()
        for name, value in uninterrupted.items():
            assert torch.equal(weights[name], value), name


@pytest.mark.parametrize("cell", CELLS, ids=Cell.name)
def test_digest_is_that_of_the_stored_base(folder: Path, cell: Cell) -> None:
    found = {*notes(cell.path(folder), "digests")}
    assert found == {expected_digest()}


@pytest.mark.parametrize("cell", REFUSED, ids=Cell.name)
def test_deepspeed_does_not_go_on_at_stage_3_from_another_or_back(folder: Path, cell: Cell) -> None:
    """Were it to load one day, the notes on what can be resumed would be wrong."""
    for rank in range(cell.world):
        assert cell.path(folder).with_suffix(f".{rank}").read_text() == "AssertionError()"


@pytest.mark.parametrize(("engine", "dtype"), SOURCES)
def test_consolidated_model_holds_the_stored_values(folder: Path, engine: str, dtype: str) -> None:
    weights = load_file(beside(folder, engine, dtype, "consolidated"))
    tied = weights.pop("head.weight")
    assert torch.equal(tied, weights["embedding.weight"])
    region = uneven_region(TinyLM())
    compared = compare_weights(stored(), weights, region)
    assert (compared.checked, compared.moved) == (region.count, 0)
    assert compared.changed == compared.trainable

    model = TinyLM().float()
    model.load_state_dict({**weights, "head.weight": tied})
    handle = freeze(model, adamw(model.parameters()), region, check_base=False)
    assert handle.digest == expected_digest()
