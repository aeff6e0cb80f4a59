"""Runs of MLflow in a database and in a folder, read back by its own client."""

import pytest
from logged import mlflow_points

from freezetrain.errors import Preempted, UserError
from freezetrain.loggers.opening import opened, require_loggers
from freezetrain.loggers.recipe import Mlflow, Wandb

pytestmark = pytest.mark.exhaustive

pytest.importorskip("mlflow", reason="mlflow is not installed: pip install '.[mlflow]'")


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    """Nothing of this machine's."""
    for name in ("TRACKING_URI", "EXPERIMENT_NAME", "RUN_ID", "ALLOW_FILE_STORE"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)


@pytest.fixture(params=["database", "folder"])
def address(request, tmp_path, monkeypatch) -> str:
    if request.param == "database":
        return f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return f"file:{tmp_path}/mlruns"


stopped_by = pytest.raises  # of blocks that raise in their last line


def open_in(folder, address, step=-1, **options):
    folder.mkdir(exist_ok=True)
    return opened(
        ["mlflow"], Wandb(), Mlflow(tracking_uri=address, **options), folder, "core", step
    )


def test_names_values_and_resumed_runs(tmp_path, address):
    folder = tmp_path / "run"
    settings = {"optimization": {"micro_batch": 2}, "brake": {"limits": {"z(h)": 0.5}}}
    values = {"forgetting/中文/perplexity": 7.5, "forgetting/a+b/accuracy": 0.5}
    with stopped_by(Preempted), open_in(folder, address) as (logger,):
        client, run_id = logger.experiment, logger.run_id
        logger.log_hyperparams(settings)
        logger.log_metrics(values, step=4)
        raise Preempted
    assert client.get_run(run_id).info.status == "KILLED"
    settings["optimization"] = {"micro_batch": 4, "seed": 1}  # one that may differ, and a new one
    with open_in(folder, address, step=4) as (logger,):
        assert logger.run_id == run_id
        assert client.get_run(run_id).info.status == "RUNNING"
        logger.log_hyperparams(settings)
        logger.log_metrics({"forgetting/中文/perplexity": float("inf")}, step=8)
    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "core")
    assert run.data.params == {
        "optimization/micro_batch": "2", "optimization/seed": "1", "brake/limits/z-28-h-29-": "0.5",
    }  # fmt: skip
    points = mlflow_points(client, run_id)
    assert points.keys() == {"forgetting/中文/perplexity", "forgetting/a-2b-b/accuracy"}
    assert points["forgetting/a-2b-b/accuracy"] == [(4, 0.5)]
    (first, last) = points["forgetting/中文/perplexity"]
    assert first == (4, 7.5)
    assert (last[0], last[1] > 1e300) == (8, True)
    experiment = client.get_experiment_by_name("freezetrain")
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_a_run_that_was_deleted_and_another_experiment_begin_anew(tmp_path, address):
    folder = tmp_path / "run"
    with open_in(folder, address) as (logger,):
        client, first = logger.experiment, logger.run_id
    client.delete_run(first)
    with open_in(folder, address, step=2) as (logger,):
        second = logger.run_id
    with open_in(folder, address, step=2, experiment="other", name="n") as (logger,):
        third = logger.run_id
    assert len({first, second, third}) == 3
    assert client.get_run(third).info.run_name == "n"
    with (
        stopped_by(ZeroDivisionError),
        open_in(folder, address, experiment="other") as (logger,),
    ):
        assert logger.run_id == third
        raise ZeroDivisionError
    assert client.get_run(third).info.status == "FAILED"


def test_variables_say_what_the_recipe_does_not(tmp_path, monkeypatch, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "by variable")
    with opened(["mlflow"], Wandb(), Mlflow(), tmp_path, "core", -1) as (logger,):
        client, run_id = logger.experiment, logger.run_id
    named = client.get_experiment_by_name("by variable")
    assert client.get_run(run_id).info.experiment_id == named.experiment_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    (tmp_path / "other").mkdir()
    with opened(["mlflow"], Wandb(), Mlflow(), tmp_path / "other", "x", -1) as (logger,):
        assert logger.run_id == run_id


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("file:runs", "MLFLOW_ALLOW_FILE_STORE says true; set it"),
        ("sqlit:///runs.db", r"cannot reach MLflow: .*; check mlflow\.tracking_uri"),
        ("http://127.0.0.1:9", r"cannot reach MLflow: .*; check mlflow\.tracking_uri"),
    ],
)
def test_an_address_that_is_none_is_one_sentence(address, complaint, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with pytest.raises(UserError, match=complaint) as refused:
        require_loggers(["mlflow"], Wandb(), Mlflow(tracking_uri=address), connect=True)
    assert "\n" not in str(refused.value)


def test_a_server_that_goes_away_is_one_sentence_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    begun = opened(["mlflow"], Wandb(), Mlflow(), tmp_path, "core", -1)
    with pytest.raises(UserError, match="cannot begin a run in MLflow") as refused:
        begun.__enter__()
    assert "secret" not in str(refused.value)
