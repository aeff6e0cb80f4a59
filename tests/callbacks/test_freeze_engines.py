"""RegionFreeze and BasePull under Lightning's strategies: two gloo ranks, and resumed."""

from pathlib import Path

import pytest
import torch
from forked_ranks import run_ranks
from frozen_reference import (
    Constants,
    TinyLM,
    adamw,
    mixed_region,
    steps_of_batches,
    train,
)
from torch import Tensor

CELLS = [
    ("ddp", "32-true"),
    ("zero-1", "32-true"),
    ("zero-2", "32-true"),
    ("zero-3", "32-true"),
    ("zero-2-offload", "32-true"),
    ("zero-3-offload", "32-true"),
    ("zero-2", "bf16-mixed"),
    ("zero-2", "bf16-true"),
    ("zero-3", "bf16-true"),
    ("fsdp2", "32-true"),
]
DEFAULT = [
    ("ddp", "32-true"),
    ("zero-2", "bf16-mixed"),
    ("zero-3", "32-true"),
    ("fsdp2", "32-true"),
]


pytest.importorskip("deepspeed")


@pytest.fixture(scope="module")
def reference() -> Constants:
    reference = Constants(TinyLM().float(), mixed_region(TinyLM()))
    parameters = reference.parameters()
    optimizer = adamw(parameters)

    @torch.no_grad()
    def pull(*_) -> None:
        for name, free in reference.free.items():
            base = reference.constants[name][~reference.masks[name]] + 1
            free -= 1e-2 * 10.0 * (free - base)

    optimizer.register_step_post_hook(pull)
    train(reference, parameters, optimizer, steps_of_batches())
    return reference


@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        pytest.param(*cell, marks=() if cell in DEFAULT else pytest.mark.exhaustive)
        for cell in CELLS
    ],
)
def test_checkpoint_holds_the_constants_and_the_rest_is_trained(
    tmp_path: Path, reference: Constants, engine: str, precision: str
) -> None:
    whole, *_ = run_ranks("freeze_engines_fit:run", engine, precision, tmp_path)
    rounds = precision == "bf16-true" or (engine.startswith("zero") and "bf16" in precision)
    for name, expected in reference.weights().items():
        mask, start = reference.masks[name], reference.constants[name]
        frozen: Tensor = start.bfloat16().float() if rounds else start
        assert torch.equal(whole[name][mask], frozen[mask]), name
        tolerance = {"rtol": 0.0, "atol": 0.03} if rounds else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(whole[name], expected.detach(), **tolerance)
        assert mask.all() or not torch.equal(whole[name][~mask], frozen[~mask]), name
