"""Trainers on two gloo processes under each engine, against one process with constants."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trainer_reference import EPS, Reference, llama, llama_region
from two_ranks import launch

ENGINES = {
    "ddp": "DDP",
    "zero2": "DeepSpeed ZeRO-2 (DeepSpeedZeroOptimizer)",
    "zero3": "DeepSpeed ZeRO-3",
    "fsdp2": "FSDP2",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    launch(folder, Path(__file__).with_name("distributed_worker.py"), folder)
    return folder


@pytest.fixture(scope="module")
def references() -> dict[bool, Reference]:
    """By whether norms are decayed: loops do, the Trainer does not."""
    region = llama_region(llama())
    return {decays: Reference(llama(), region, EPS, decays).train() for decays in (False, True)}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("run", ["hf", "hf-resumed", "accelerate", "fabric"])
def test_trains_as_if_frozen_entries_were_constants(
    folder: Path, references: dict[bool, Reference], run: str, engine: str
) -> None:
    reference = references[not run.startswith("hf")]
    here = folder / f"{run}-{engine}"
    reference.compare(load_file(here / "weights.safetensors"), rtol=1e-4, atol=1e-5)
    seen = json.loads((here / "seen.json").read_text())
    # What is clipped is the norm over trainable entries.
    assert seen["norms"] == pytest.approx(reference.norms, rel=1e-5)
    assert seen["verified"] == f"{llama_region(llama()).count} under {ENGINES[engine]}"


@pytest.mark.parametrize("engine", ENGINES)
def test_checkpoints_are_frozen_and_resume_as_if_uninterrupted(
    folder: Path, references: dict[bool, Reference], engine: str
) -> None:
    reference = references[False]
    for step in (2, 4, 6):
        saved = load_file(folder / f"hf-{engine}" / f"checkpoint-{step}" / "model.safetensors")
        for name, value in saved.items():
            mask = reference.masks[name]
            assert torch.equal(value[mask], reference.constants[name][mask]), (step, name)
    runs = [folder / f"{run}-{engine}" for run in ("hf", "hf-resumed")]
    whole, resumed = (load_file(run / "weights.safetensors") for run in runs)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
