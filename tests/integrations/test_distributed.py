"""Trainers on two gloo processes under each engine, against one process with constants."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trainer_reference import ACCUMULATE, EPS, ROWS, Reference, llama, llama_region
from two_ranks import launch
from watched_texts import STEPS, check_history

from freezetrain.evaluation import History

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
@pytest.mark.parametrize("run", ["hf", "hf-watched", "hf-resumed", "accelerate", "fabric"])
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
    whole, *others = (weights(folder, run, engine) for run in ("hf", "hf-watched", "hf-resumed"))
    for other in others:
        for name, value in whole.items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("run", ["hf-watched", "accelerate", "fabric"])
def test_languages_are_watched_as_on_one_process(folder: Path, run: str, engine: str) -> None:
    kept = [(folder / f"{run}-{engine}" / f"history-{r}.json").read_text() for r in (0, 1)]
    assert kept[0] == kept[1]
    adapted = llama()
    adapted.load_state_dict(weights(folder, run, engine))
    history = History.from_dict(json.loads(kept[0]))
    check_history(history, llama(), adapted)
    if run != "hf-watched":
        return
    assert [e.samples for e in history.evaluations] == [step * ACCUMULATE * ROWS for step in STEPS]
    for rank in (0, 1):
        resumed = (folder / f"hf-resumed-{engine}" / f"history-{rank}.json").read_text()
        assert json.loads(resumed) == json.loads(kept[0])
    state = (folder / f"{run}-{engine}" / "checkpoint-6" / "trainer_state.json").read_text()
    logged = [
        line["step"] for line in json.loads(state)["log_history"] if "forgetting/mean" in line
    ]
    assert logged == [0, 3, 6]


def weights(folder: Path, run: str, engine: str) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{run}-{engine}" / "weights.safetensors")
