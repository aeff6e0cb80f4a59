"""Runs of Weights & Biases: offline, by its variables, with a server that is there or is not."""

import time

import pytest
from logged import wandb_points
from wandb_server import serving

from freezetrain.errors import Preempted, UserError
from freezetrain.loggers import wandb_run
from freezetrain.loggers.opening import opened, require_loggers
from freezetrain.loggers.recipe import Mlflow, Wandb

pytestmark = pytest.mark.exhaustive

wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install '.[wandb]'")


@pytest.fixture(autouse=True)
def variables(monkeypatch, tmp_path):
    """Nothing of this machine's."""
    for name in ("MODE", "PROJECT", "ENTITY", "NAME", "DIR", "RUN_ID", "API_KEY", "BASE_URL"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    yield
    wandb.teardown()  # which has read the variables once


stopped_by = pytest.raises  # of blocks that raise in their last line


def log(folder, options, step, values, name="core"):
    with opened(["wandb"], options, Mlflow(), folder, name, step) as (logger,):
        run = logger.experiment
        for at, value in values.items():
            logger.log_metrics({"forgetting/mean": value}, step=at)
    return run


def test_a_resumed_run_is_the_same_one_and_another_folder_has_another(tmp_path):
    offline = Wandb(mode="offline", project="here")
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    runs = [log(first, offline, -1, {1: 0.5, 2: 0.25}), log(first, offline, 1, {2: 0.25, 3: 0.125})]
    other = log(second, offline, -1, {1: 0.5})
    assert runs[0].id == runs[1].id != other.id
    assert (runs[0].project, runs[0].name) == ("here", "core")
    starts = sorted((first / "wandb").glob(f"offline-run-*-{runs[0].id}"))
    found = [wandb_points(start)[0]["forgetting/mean"] for start in starts]
    assert found == [[(1, 0.5), (2, 0.25)], [(2, 0.25), (3, 0.125)]]
    elsewhere = Wandb(mode="offline", project="elsewhere")
    assert log(first, elsewhere, 1, {2: 0.25}).id != runs[0].id


def test_variables_say_what_the_recipe_does_not(tmp_path, monkeypatch):
    for name, value in {"MODE": "offline", "PROJECT": "p", "NAME": "n", "RUN_ID": "a1"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "logs"))
    (tmp_path / "logs").mkdir()
    run = log(tmp_path, Wandb(), -1, {1: 0.5})
    assert (run.project, run.name, run.id, run.offline) == ("p", "n", "a1", True)
    assert list((tmp_path / "logs" / "wandb").glob("offline-run-*"))
    run = log(tmp_path, Wandb(project="q", name="m"), -1, {1: 0.5})
    assert (run.project, run.name) == ("q", "m")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    wandb.teardown()
    assert log(tmp_path, Wandb(), -1, {1: 0.5}).disabled


def test_without_a_key_it_says_so_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match=r"cannot log to Weights & Biases: No API key .*offline"):
        require_loggers(["wandb"], Wandb(), Mlflow(), connect=True)
    require_loggers(["wandb"], Wandb(mode="offline"), Mlflow(), connect=True)


def test_a_server_gets_the_rows_of_all_starts_in_one_run(tmp_path, monkeypatch):
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        online = Wandb(project="p")
        require_loggers(["wandb"], online, Mlflow(), connect=True)
        with (
            stopped_by(Preempted),
            opened(["wandb"], online, Mlflow(), tmp_path, "n", -1) as (logger,),
        ):
            logger.log_metrics({"final/mean": 0.5}, step=4)
            raise Preempted("stopped")
        run = log(tmp_path, online, 4, {5: 0.25})
        assert set(server.runs) == {("p", run.id)}
        sent = [
            (row["trainer/global_step"], row.get("final/mean", row.get("forgetting/mean")))
            for row in server.rows[run.id]
        ]
        assert sent == [(4, 0.5), (5, 0.25)]


def test_a_server_that_is_not_there_ends_the_command(tmp_path, monkeypatch):
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "5")
    with pytest.raises(UserError, match=r"cannot log to Weights & Biases: .*wandb\.mode offline"):
        log(tmp_path, Wandb(), -1, {})


def test_a_server_that_goes_away_does_not_hold_the_end_up(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb_run, "END_SECONDS", 4)
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        with opened(["wandb"], Wandb(), Mlflow(), tmp_path, "n", -1) as (logger,):
            run = logger.experiment
            server.lost = True
            logger.log_metrics({"final/mean": 0.5}, step=3)
            began = time.monotonic()
        assert 3 < time.monotonic() - began < 30
        wandb.teardown()
        (start,) = (tmp_path / "wandb").glob(f"run-*-{run.id}")
        assert wandb_points(start)[0] == {"final/mean": [(3, 0.5)]}, "kept, to be sent later"
