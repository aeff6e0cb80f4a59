"""Stopping and averaging on two ranks of real engines."""

import json
from pathlib import Path

import pytest
from extras_module import ACCUMULATE, STEPS
from two_ranks import launch

ENGINES = ("ddp", "fsdp2", "zero-2")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("extras")
    launch(folder, Path(__file__).with_name("extras_fit.py"), folder, *ENGINES)
    return {
        engine: [json.loads((folder / engine / f"rank-{r}.json").read_text()) for r in (0, 1)]
        for engine in ENGINES
    }


@pytest.mark.parametrize("engine", ENGINES)
def test_ranks_stop_together_when_one_is_told_to(found, engine):
    for rank, result in enumerate(found[engine]):
        who = "SIGUSR2" if rank else "a signal that another rank received"
        assert result["said"].startswith(f"stopped by {who} after step 3, "), result["said"]
        assert result["seen"] == list(range(6))
        assert result["saved"] == [3]
        assert result["seen again"] == list(range(6, STEPS * ACCUMULATE))
        assert result["differ"] == [], "the run that goes on is the one that was never stopped"


def test_average_of_ranks_resumes_exactly(found):
    for result in found["ddp"]:
        assert result["averages differ"] == []
        assert result["back"]
        assert result["from torch's"] < 1e-6
        assert result["moved"] > 1e-3, "the average lags behind the weights"
        assert result["frozen moved"] == []
