"""RegionFreeze under Lightning's sharded strategies, two gloo processes, and resumed."""

from pathlib import Path

import pytest
import torch
from frozen_reference import (
    Constants,
    TinyLM,
    adamw,
    mixed_region,
    steps_of_batches,
    train,
)
from safetensors.torch import load_file
from torch import Tensor
from two_ranks import launch

CELLS = [
    "zero-1:32-true",
    "zero-2:32-true",
    "zero-3:32-true",
    "zero-2-offload:32-true",
    "zero-3-offload:32-true",
    "zero-2:bf16-mixed",
    "zero-2:bf16-true",
    "zero-3:bf16-true",
    "fsdp2:32-true",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the two ranks of all cells left."""
    folder = tmp_path_factory.mktemp("engines")
    launch(folder, Path(__file__).with_name("freeze_engines_fit.py"), folder, *CELLS)
    return folder


@pytest.fixture(scope="module")
def reference() -> Constants:
    reference = Constants(TinyLM().float(), mixed_region(TinyLM()))
    parameters = reference.parameters()
    train(reference, parameters, adamw(parameters), steps_of_batches())
    return reference


@pytest.mark.parametrize("cell", CELLS)
def test_checkpoint_holds_the_constants_and_the_rest_is_trained(
    folder: Path, reference: Constants, cell: str
) -> None:
    place = folder / cell.replace(":", "-")
    for error in place.glob("error-*.txt"):
        pytest.fail(error.read_text())
    whole = load_file(place / "whole.safetensors")
    rounds = cell.endswith("bf16-true") or (cell.startswith("zero") and "bf16" in cell)
    for name, expected in reference.weights().items():
        mask, start = reference.masks[name], reference.constants[name]
        frozen: Tensor = start.bfloat16().float() if rounds else start
        assert torch.equal(whole[name][mask], frozen[mask]), name
        tolerance = {"rtol": 0.0, "atol": 0.03} if rounds else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(whole[name], expected.detach(), **tolerance)
        assert mask.all() or not torch.equal(whole[name][~mask], frozen[~mask]), name
