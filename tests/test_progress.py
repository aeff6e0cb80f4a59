import json

import pytest

from freezetrain.progress import Stages


def test_a_repeated_run_reads_what_a_stage_gave(tmp_path, capsys):
    made = []

    def make():
        made.append(1)
        return {"loss": [1.5]}

    for _ in range(2):
        stages = Stages(tmp_path / "parts")
        assert stages.kept("scores", make) == {"loss": [1.5]}
        assert stages.seconds == {"scores": 0.0}
    assert made == [1]
    assert json.loads((tmp_path / "parts" / "scores.json").read_text()) == {
        "seconds": 0.0,
        "found": {"loss": [1.5]},
    }
    assert capsys.readouterr().err.count("scores") == 1


def test_a_stage_that_fails_keeps_nothing(tmp_path):
    def fail():
        raise ValueError("no")

    stages = Stages(tmp_path)
    with pytest.raises(ValueError, match="no"):
        stages.kept("scores", fail)
    assert not list(tmp_path.iterdir())
    assert stages.kept("scores", lambda: 1) == 1
