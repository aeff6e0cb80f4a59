"""Two gloo processes under DDP against one process in which frozen entries are constants."""

from pathlib import Path

import pytest
import torch
from frozen_reference import (
    Constants,
    TinyLM,
    adamw,
    assert_same_training,
    mixed_region,
    steps_of_batches,
    train,
)
from safetensors.torch import load_file
from two_ranks import WORLD, launch


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    launch(folder, Path(__file__).with_name("ddp_worker.py"), folder)
    return folder


@pytest.mark.parametrize("options", ["plain", "views", "static"])
def test_ranks_follow_the_single_process(folder: Path, options: str) -> None:
    model = TinyLM()
    reference = Constants(TinyLM(), mixed_region(model))
    train(reference, reference.parameters(), adamw(reference.parameters()), steps_of_batches())
    ranks = [load_file(folder / f"{options}-{rank}.safetensors") for rank in range(WORLD)]
    for name, value in ranks[0].items():
        assert torch.equal(value, ranks[1][name])
    model.load_state_dict(ranks[0], strict=False)  # the tied head is stored once
    assert_same_training(model, reference)


def test_gradients_are_masked_before_they_are_reduced(folder: Path) -> None:
    model = TinyLM()
    first, second = (load_file(folder / f"reduced-{rank}.safetensors") for rank in range(WORLD))
    for frozen in mixed_region(model).resolve(model):
        mask = frozen.entries.mask()
        assert not first[frozen.name][mask].any()
        assert not second[frozen.name][mask].any()
    # Each rank's own, not reduced yet.
    assert not torch.equal(first["up.weight"], second["up.weight"])
