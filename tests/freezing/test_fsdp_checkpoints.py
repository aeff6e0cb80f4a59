"""A frozen FSDP2 run goes on from a distributed checkpoint, with as many ranks or others."""

import json
from pathlib import Path

import pytest
import torch
from forked_workers import run_worker
from frozen_reference import TinyLM, adamw
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from zero_checkpoint_cells import uneven_region

from freezetrain.freezing import compare_weights, freeze

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# What adding numbers up in another order changes: runs without the optimizer's state are 1e-3
# apart in fp32, and their losses 1e-1 in either.
LOSSES, WEIGHTS = {"fp32": 1e-6, "bf16": 2e-2}, {"fp32": 1e-6, "bf16": 1e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp")
    run_worker("fsdp_checkpoints_worker.py", folder)
    return folder


def notes(path: Path, key: str) -> list:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()[key])


def base(dtype: str) -> dict[str, Tensor]:
    model = TinyLM().to(DTYPES[dtype])
    return {name: value.detach() for name, value in model.named_parameters()}


def expected_digest(dtype: str) -> str:
    model = TinyLM().to(DTYPES[dtype])
    return freeze(model, adamw(model.parameters()), uneven_region(model)).digest


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("run", ["on-1", "on-2", "on-2-freeze-first", "on-3"])
def test_goes_on_as_if_never_stopped(folder: Path, run: str, dtype: str) -> None:
    path, whole = folder / f"{dtype}.{run}.safetensors", folder / f"{dtype}.run.safetensors"
    weights, uninterrupted = load_file(path), load_file(whole)
    for frozen in uneven_region(TinyLM()).resolve(TinyLM()):
        mask, start = frozen.entries.mask(), base(dtype)[frozen.name]
        assert torch.equal(uninterrupted[frozen.name][mask], start[mask])
        assert torch.equal(weights[frozen.name][mask], start[mask])
    assert {*notes(path, "digests"), *notes(whole, "digests")} == {expected_digest(dtype)}

    losses, resumed = notes(whole, "losses"), notes(path, "losses")
    if run.startswith("on-2"):
        assert resumed == losses
        assert all(torch.equal(weights[name], value) for name, value in uninterrupted.items())
    else:
        assert resumed == pytest.approx(losses, abs=LOSSES[dtype])
        torch.testing.assert_close(weights, uninterrupted, rtol=0, atol=WEIGHTS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_consolidated_model_holds_the_base(folder: Path, dtype: str) -> None:
    weights = load_file(folder / f"{dtype}.consolidated.safetensors")
    tied = weights.pop("head.weight")
    region = uneven_region(TinyLM())
    compared = compare_weights(base(dtype), weights, region)
    assert (compared.checked, compared.moved) == (region.count, 0)
    assert compared.changed > 0.9 * compared.trainable  # a step may be too small for bf16

    model = TinyLM().to(DTYPES[dtype])
    model.load_state_dict({**weights, "head.weight": tied})
    handle = freeze(model, adamw(model.parameters()), region, check_base=False)
    assert handle.digest == expected_digest(dtype)
