"""Two ranks whose clocks disagree evaluate the same at the same steps, or refuse together."""

import json
from pathlib import Path

import pytest
from two_ranks import launch
from watched_loop import Loop, documents

from freezetrain.evaluation import ForgettingWatch


def test_two_ranks(tmp_path):
    printed = launch(tmp_path, Path(__file__).with_name("watch_worker.py"), tmp_path)
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert "forgetting.json' exists" in first["refusal"]
    history = first["history"]
    assert [text.count("Forgetting at step") for text in printed] == [
        len(history["evaluations"]),
        0,
    ]
    written = json.loads((tmp_path / "forgetting.json").read_text())
    assert written["evaluations"] == history["evaluations"]
    taken = [entry["step"] for entry in history["evaluations"]]
    assert taken[0] == 0
    assert taken[-1] == 41
    assert 2 < len(taken) < 22, "some are left out, as rank 0's clock says"

    # One process finds the same on these documents at these steps.
    alone, loop = ForgettingWatch(documents(more=20), "sw", max_length=16, table=False), Loop()
    alone.start(loop.model)
    some = {n: [documents(more=20)[n][k] for k in found] for n, found in first["chosen"].items()}
    for entry in history["evaluations"]:
        loop.train(None, entry["step"])
        alone.documents = documents(more=20) if entry["step"] == 0 else some
        figures = alone.evaluate(loop.model)
        assert entry["figures"].keys() == figures.keys()
        for language, found in entry["figures"].items():
            assert found["tokens"] == figures[language].tokens
            assert found["nll"] == pytest.approx(figures[language].nll, rel=1e-6)
