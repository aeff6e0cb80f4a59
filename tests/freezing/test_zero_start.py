"""Frozen entries start from the stored base or a clamp value, wherever an engine holds them."""

from pathlib import Path

import pytest
import torch
from forked_workers import run_worker
from frozen_reference import TinyLM, adamw, steps_of_batches
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from zero_checkpoint_cells import uneven_region
from zero_start_cells import AS_IS, CELLS, FSDP2, STORED, Cell

from freezetrain.freezing import compare_weights, freeze

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    run_worker("zero_start_worker.py", folder)
    return folder


def expected(cell: Cell, before: dict[str, Tensor]) -> tuple[TinyLM, TinyLM]:
    """The masters and the weights of the forward pass, as models, right after the freeze."""
    stored, masters = TinyLM().float(), TinyLM().float()
    masters.load_state_dict({**before, "head.weight": before["embedding.weight"]})
    for frozen in uneven_region(masters).resolve(masters):
        mask = frozen.entries.mask()
        with torch.no_grad():
            if cell.start == STORED:
                frozen.parameter[mask] = stored.get_parameter(frozen.name)[mask]
            elif cell.start != AS_IS:
                frozen.parameter[mask] = float(cell.start)
    copies = TinyLM()
    copies.load_state_dict(masters.state_dict())
    copies.to(DTYPES[cell.dtype])
    return (masters if cell.rounds else copies), copies


def assert_holds(
    weights: dict[str, Tensor], kind: str, model: TinyLM, frozen_only: bool = False
) -> None:
    """All the model's values to the last bit, or those at its frozen entries."""
    masks = {frozen.name: frozen.entries.mask() for frozen in uneven_region(model).resolve(model)}
    for name, value in model.named_parameters():
        found = weights[f"{kind}/{name}"]
        assert found.dtype == value.dtype
        mask = masks.get(name, torch.zeros_like(value, dtype=torch.bool))
        assert torch.equal(found[mask], value[mask]), (kind, name)
        if not frozen_only:
            assert torch.equal(found, value), (kind, name)
        elif not mask.all():
            assert not torch.equal(found, value), (kind, name)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: ", ".join(map(str, cell)))
def test_starts_from_it_everywhere_and_keeps_it(folder: Path, cell: Cell) -> None:
    weights = load_file(cell.path(folder))
    before = {name: weights[f"before/{name}"] for name, _ in TinyLM().named_parameters()}
    masters, copies = expected(cell, before)
    if not cell.before:
        assert_holds(
            weights, "before", TinyLM().to(DTYPES[cell.dtype]).to(masters.norm.weight.dtype)
        )
    assert_holds(weights, "master", masters)
    assert_holds(weights, "trained", masters, frozen_only=True)
    if cell.engine != FSDP2:
        assert_holds(weights, "copy", copies)
        assert_holds(weights, "trained copy", copies, frozen_only=True)
    if cell.exports:
        assert_holds(weights, "export", masters, frozen_only=True)

    logits = copies(steps_of_batches(1, 1)[0][0])
    limit = 1e-6 if cell.dtype == "fp32" else 0.1
    torch.testing.assert_close(weights["logits/"], logits.detach(), rtol=0, atol=limit)

    with safe_open(cell.path(folder), "pt") as file:
        digest = file.metadata()["digest"]
    assert digest == freeze(masters, adamw(masters.parameters()), uneven_region(masters)).digest


@pytest.mark.parametrize(
    "cell",
    [cell for cell in CELLS if cell.rounds and cell.exports and cell.start in (AS_IS, STORED)],
    ids=lambda cell: ", ".join(map(str, cell)),
)
def test_export_is_the_stored_base_or_is_known_to_be_rounded(folder: Path, cell: Cell) -> None:
    weights = load_file(cell.path(folder))
    export = {name: weights[f"export/{name}"] for name, _ in TinyLM().named_parameters()}
    stored = {name: value.detach() for name, value in TinyLM().float().named_parameters()}
    rounded = {name: value.bfloat16() for name, value in stored.items()}
    region = uneven_region(TinyLM())
    moved = compare_weights(stored, export, region).moved
    assert (moved == 0) == (cell.start == STORED)
    assert (compare_weights(rounded, export, region).moved == 0) == (cell.start == AS_IS)
