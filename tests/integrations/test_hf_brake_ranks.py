"""ForgettingBrakeCallback on two ranks under each engine of the Trainer."""

import json
from pathlib import Path

import pytest
from two_ranks import launch

ENGINES = ("ddp", "zero2", "zero3", "fsdp2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("brake")
    launch(folder, Path(__file__).with_name("brake_worker.py"), folder)
    return folder


def told(folder: Path, engine: str) -> dict:
    ranks = [json.loads((folder / f"{engine}-{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    return ranks[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_rolls_back_to_what_free_training_had_at_that_step(folder, engine):
    found = told(folder, engine)
    assert found["lost"][2] < found["limit"] < found["lost"][3]
    assert (found["brake"]["ended_at_step"], found["brake"]["model_step"]) == (6, 4)
    assert found["of"] == [4]


@pytest.mark.parametrize("engine", ENGINES)
def test_goes_back_to_the_base_or_says_that_it_cannot(folder, engine):
    base = told(folder, engine)["base"]
    if engine == "ddp":
        assert base is True
    else:
        assert base.startswith("the base is the only model within the limits, and under DeepSpeed")
