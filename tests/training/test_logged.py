"""Two ranks that log to a CSV file, Weights & Biases offline and MLflow, killed and resumed."""

import json

import pytest
import yaml
from command_runs import Run, start
from logged import csv_points, mlflow_points, wandb_points

from freezetrain.regions import Region

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(900)]

for name in ("wandb", "mlflow"):
    pytest.importorskip(name, reason=f"{name} is not installed: pip install '.[{name}]'")

TIMED = ("time/", "train/tokens_per_second", "train/memory", "train/hours_left")


def untimed(points):
    """What does not depend on the clock."""
    return {name: found for name, found in points.items() if not name.startswith(TIMED)}


@pytest.fixture
def recipe(tmp_path, model_folder, model, monkeypatch) -> dict:
    Region.random(model, 0.2, seed=3).save(tmp_path / "region.safetensors")
    for variable in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    return {
        "model": {"path": str(model_folder)},
        "languages": ["zh"],
        "region": str(tmp_path / "region.safetensors"),
        "pull": {"strength": 5.0, "log_every": 3},
        "engine": {"kind": "ddp"},
        "optimization": {
            "max_steps": 8, "sequence_length": 32, "micro_batch": 2, "batch_tokens": 128,
            "learning_rate": 0.01, "warmup_steps": 2,
        },
        "watch": {"languages": ["en", "zh"], "every_n_steps": 4, "max_length": 64},
        "logger": ["csv", "wandb", "mlflow"],
        "wandb": {"mode": "offline", "project": "languages"},
        "mlflow": {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db", "experiment": "languages"},
        "checkpoint_every": 2,
        "workers": 1,
    }  # fmt: skip


def test_killed_and_resumed_it_goes_on_in_the_same_places(recipe, tmp_path):
    from mlflow import MlflowClient

    whole, killed = Run(tmp_path / "whole", recipe), Run(tmp_path / "killed", recipe)
    start(whole, world=2)
    start(killed, world=2, kill_in=6)  # step 5 was logged, and is not saved
    start(killed, world=2, stop_in=7)
    start(killed, world=2)
    assert killed.results["resumed_from"] == "step=7.ckpt"

    expected = untimed(csv_points(whole.folder))
    assert [step for step, _ in expected["train/loss"]] == list(range(1, 9))
    assert {name.partition("/")[0] for name in expected} == {"train", "forgetting", "pull", "final"}
    assert untimed(csv_points(killed.folder)) == {
        name: found if name.startswith("pull/") else approximately(found)
        for name, found in with_pulls_of(csv_points(killed.folder), expected).items()
    }

    client = MlflowClient(recipe["mlflow"]["tracking_uri"])
    experiment = client.get_experiment_by_name("languages").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert runs.keys() == {"whole", "killed"}, "one for each run, of one rank, over all starts"
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    region = Region.load(recipe["region"])
    for run, name in ((whole, "whole"), (killed, "killed")):
        found = runs[name]
        assert found.data.params["frozen/digest"] == region.digest
        assert found.data.params["optimization/learning_rate"] == "0.01"
        points = untimed(mlflow_points(client, found.info.run_id))
        if name == "killed":  # made again after the kill
            assert [step for step, _ in points["train/loss"]].count(5) == 2
        assert once(points) == untimed(csv_points(run.folder))

    for run, starts in ((whole, 1), (killed, 3)):
        ids = json.loads((run.folder / "logged_runs.json").read_text())
        folders = sorted((run.folder / "wandb").glob("offline-run-*"))
        assert len(folders) == starts
        assert all(folder.name.endswith(f"-{ids['wandb']['id']}") for folder in folders)
        points: dict[str, list] = {}
        for folder in folders:
            logged, settings = wandb_points(folder)
            assert settings["frozen"]["entries"] == region.count
            for name, found in logged.items():
                points[name] = points.get(name, []) + found
        assert once(untimed(points)) == untimed(csv_points(run.folder))

    told = yaml.safe_load((killed.folder / "csv" / "hparams.yaml").read_text())
    assert told["frozen"]["share"] == pytest.approx(killed.results["region"]["share"])


def once(points):
    """Each step once, in order: what was made again is the same."""
    return {name: sorted(set(found)) for name, found in points.items()}


def approximately(found):
    return [(step, pytest.approx(value, rel=1e-6, abs=1e-9)) for step, value in found]


def with_pulls_of(here, expected):
    """Distances are looked at every so many steps of a start."""
    pulls = {name: found for name, found in here.items() if name.startswith("pull/")}
    assert pulls.keys() == {name for name in expected if name.startswith("pull/")}
    for name, found in pulls.items():
        assert found[-1] == expected[name][-1]
    return {**expected, **pulls}
