"""Trainers on two gloo processes under each engine, against one process with constants."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_ranks import run_ranks
from safetensors.torch import load_file
from trainer_reference import (
    ACCUMULATE,
    EPS,
    ROWS,
    Reference,
    llama,
    llama_region,
    strengths,
    weights_of,
)
from watched_texts import STEPS, check_history

from freezetrain.evaluation import History

pytest.importorskip("deepspeed")

ENGINES = {
    "ddp": "DDP",
    "zero2": "DeepSpeed ZeRO-2 (DeepSpeedZeroOptimizer)",
    "zero3": "DeepSpeed ZeRO-3",
    "fsdp2": "FSDP2",
}
DEFAULT = [
    ("hf-watched", "zero2"),
    ("hf-resumed", "zero2"),
    ("hf", "fsdp2"),
    ("hf-pulled-resumed", "zero3"),
    ("accelerate", "zero3"),
    ("fabric", "fsdp2"),
]

RESUMED = {"hf-resumed": "hf-watched", "hf-pulled-resumed": "hf-pulled"}
"""A run that goes on -> the one that wrote the checkpoint."""

Trained = Callable[[str, str], list[Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Trained:
    """Run and engine -> what each rank saw (``distributed_runs.Seen``)."""

    @cache
    def train(run: str, engine: str) -> list[Any]:
        if run in RESUMED:
            train(RESUMED[run], engine)
        here = folder / f"{RESUMED.get(run, run)}-{engine}"
        return run_ranks("distributed_runs:train", run, engine, here)

    return train


@pytest.fixture(scope="module")
def references() -> dict[bool, Reference]:
    """By whether norms are decayed: loops do, the Trainer does not."""
    region = llama_region(llama())
    return {decays: Reference(llama(), region, EPS, decays).train() for decays in (False, True)}


def cells(*runs: str) -> list[Any]:
    return [
        pytest.param(
            run, engine, marks=() if (run, engine) in DEFAULT else (pytest.mark.exhaustive,)
        )
        for run in runs
        for engine in ENGINES
    ]


@pytest.mark.parametrize(
    ("run", "engine"), cells("hf", "hf-watched", "hf-resumed", "accelerate", "fabric")
)
def test_trains_as_if_frozen_entries_were_constants(
    trained: Trained, references: dict[bool, Reference], run: str, engine: str
) -> None:
    reference = references[not run.startswith("hf")]
    seen = trained(run, engine)[0]
    reference.compare(seen.weights, rtol=1e-4, atol=1e-5)
    # What is clipped is the norm over trainable entries.
    assert seen.norms == pytest.approx(reference.norms, rel=1e-5)
    assert seen.verified == f"{llama_region(llama()).count} under {ENGINES[engine]}"


@pytest.mark.parametrize(("run", "engine"), cells("hf-resumed"))
def test_checkpoints_are_frozen_and_resume_as_if_uninterrupted(
    trained: Trained, folder: Path, references: dict[bool, Reference], run: str, engine: str
) -> None:
    reference = references[False]
    uninterrupted, resumed = trained("hf-watched", engine)[0], trained(run, engine)[0]
    for step in (2, 4, 6):
        checkpoint = folder / f"hf-watched-{engine}" / f"checkpoint-{step}"
        for name, value in load_file(checkpoint / "model.safetensors").items():
            mask = reference.masks[name]
            assert torch.equal(value[mask], reference.constants[name][mask]), (step, name)
    for name, value in uninterrupted.weights.items():
        assert torch.equal(value, resumed.weights[name]), name
    assert uninterrupted.history == resumed.history


@pytest.mark.parametrize(("run", "engine"), cells("hf-pulled-resumed"))
def test_is_pulled_to_the_base_also_where_it_goes_on(
    trained: Trained, run: str, engine: str
) -> None:
    base, model = weights_of(llama(seed=3)), llama()
    reference = Reference(model, llama_region(model), EPS, False).pulled(strengths(model), base)
    uninterrupted, resumed = trained("hf-pulled", engine)[0], trained(run, engine)[0]
    for seen in (uninterrupted, resumed):
        reference.compare(seen.weights, rtol=1e-4, atol=1e-5)
        assert seen.norms == pytest.approx(reference.norms, rel=1e-5)
    for name, value in uninterrupted.weights.items():
        assert torch.equal(value, resumed.weights[name]), name
    assert [line["step"] for line in resumed.distances] == [3, 6]
    assert resumed.distances == uninterrupted.distances
    now = uninterrupted.weights["lm_head.weight"] - base["lm_head.weight"]
    distance = float(now.norm() / base["lm_head.weight"].norm())
    assert resumed.distances[-1]["pull/lm_head.weight"] == pytest.approx(distance, rel=1e-5)
    assert "pull/model.layers.N.mlp.up_proj.weight" in resumed.distances[-1]


@pytest.mark.parametrize(("run", "engine"), cells("hf-watched", "accelerate", "fabric"))
def test_languages_are_watched_as_on_one_process(
    trained: Trained, folder: Path, run: str, engine: str
) -> None:
    first, second = trained(run, engine)
    assert first.history == second.history
    adapted = llama()
    adapted.load_state_dict(first.weights)
    history = History.from_dict(first.history)
    check_history(history, llama(), adapted)
    if run != "hf-watched":
        return
    assert [e.samples for e in history.evaluations] == [step * ACCUMULATE * ROWS for step in STEPS]
    state = (folder / f"{run}-{engine}" / "checkpoint-6" / "trainer_state.json").read_text()
    lines = json.loads(state)["log_history"]
    assert [line["step"] for line in lines if "forgetting/mean" in line] == [0, 3, 6]


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(engine, marks=() if engine == "zero2" else (pytest.mark.exhaustive,))
        for engine in ENGINES
    ],
)
def test_rolls_back_to_what_free_training_had_at_that_step(tmp_path: Path, engine: str) -> None:
    first, second = run_ranks("distributed_runs:braked", engine, tmp_path)
    assert first == second
    assert first["lost"][2] < first["limit"] < first["lost"][3]
    assert (first["brake"]["ended_at_step"], first["brake"]["model_step"]) == (6, 4)
    assert first["steps"] == [4]
    # It goes back to the base or says that it cannot.
    if engine == "ddp":
        assert first["base"] is True
    else:
        assert first["base"].startswith(
            "the base is the only model within the limits, and under DeepSpeed"
        )
