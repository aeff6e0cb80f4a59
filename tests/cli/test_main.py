"""Who claims the folder, who writes, who prints; and the status that each rank ends with."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from freezetrain.cli import main
from freezetrain.errors import CheckError, Preempted, UserError
from freezetrain.run_folder import Outcome

TRAIN = ("train", "--model", "x", "--out", "out")


@pytest.fixture
def job(monkeypatch):
    """A job that notes what it is called with, and does ``job.action(folder)``."""
    told = SimpleNamespace(calls=[], action=lambda folder: Outcome({"done": 1}, ["a table"]))

    def run(recipe, folder):
        import os

        told.calls.append((folder, os.environ.get("FREEZETRAIN_OUT")))
        return told.action(folder)

    monkeypatch.setitem(sys.modules, "freezetrain.training.train", SimpleNamespace(run=run))
    monkeypatch.setattr("freezetrain.places.require_places", lambda recipe: None)  # x is no model
    return told


def torchrun(monkeypatch, rank, world=2):
    for name, value in (("RANK", rank), ("WORLD_SIZE", world), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(world))


def child(monkeypatch, out, rank=1):
    monkeypatch.setenv("FREEZETRAIN_OUT", str(out))
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("freezetrain.cli.end_with_parent", lambda: None)
    monkeypatch.setattr("freezetrain.cli.time.sleep", lambda seconds: None)


def status(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code


def raising(error):
    def action(folder):
        raise error

    return action


def test_rank_0_claims_writes_and_prints(job, monkeypatch, capsys):
    torchrun(monkeypatch, 0)
    assert status(*TRAIN) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["recipe.yaml", "results.json"]
    assert "a table" in capsys.readouterr().out
    assert job.calls == [(Path("out"), None)]  # torchrun's ranks are told by --out


def test_other_ranks_leave_the_folder_alone(job, monkeypatch, capsys):
    torchrun(monkeypatch, 1)
    assert status(*TRAIN) == 0
    assert not Path("out").exists()
    assert capsys.readouterr().out == ""
    assert job.calls == [(Path("out"), None)]


def test_no_rank_waits_where_the_run_is_finished(job, monkeypatch):
    torchrun(monkeypatch, 0)
    assert status(*TRAIN) == 0
    torchrun(monkeypatch, 1)
    assert status(*TRAIN) == 0
    assert len(job.calls) == 1


def test_processes_that_lightning_starts_get_the_folder(job, monkeypatch, tmp_path, capsys):
    assert status("train", "--model", "x") == 0
    ((folder, announced),) = job.calls
    assert announced == str(tmp_path / folder)
    assert folder.name.startswith("train-")
    capsys.readouterr()
    child(monkeypatch, announced)
    assert status("train", "--model", "x") == 0
    assert job.calls[1][0] == Path(announced)
    assert capsys.readouterr().out == ""


def test_several_processes_need_out(job, monkeypatch, capsys):
    torchrun(monkeypatch, 0)
    assert status("train", "--model", "x") == 2
    assert "torchrun started 2 processes, which need one folder; give --out" in (
        capsys.readouterr().err
    )
    assert not job.calls


def test_other_verbs_run_in_one_process(monkeypatch, capsys):
    torchrun(monkeypatch, 1)
    assert status("info", "x", "--out", "out") == 2
    assert "freezetrain: rank 1: info runs in one process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("bad"), 2), (CheckError("moved"), 1), (Preempted("saved"), 75)],
)
def test_status_and_sentence(job, monkeypatch, capsys, error, code):
    job.action = raising(error)
    assert status(*TRAIN) == code
    assert capsys.readouterr().err == f"freezetrain: {error}\n"
    torchrun(monkeypatch, 1)
    assert status(*TRAIN) == code
    said = capsys.readouterr().err
    assert said == ("" if code == 75 else f"freezetrain: rank 1: {error}\n")


def test_a_process_of_lightnings_that_was_preempted_did_not_fail(job, monkeypatch, tmp_path):
    """Lightning kills rank 0, which is to end with 75, when one that it started fails."""
    child(monkeypatch, tmp_path / "out")
    job.action = raising(Preempted("saved"))
    assert status("train", "--model", "x") == 0


def test_preempted_goes_on_with_the_same_command(job):
    def save_and_stop(folder):
        (folder / "checkpoint").write_text("5")
        raise Preempted("saved")

    job.action = save_and_stop
    assert status(*TRAIN) == 75
    job.action = lambda folder: Outcome({"resumed": (folder / "checkpoint").read_text()})
    assert status(*TRAIN) == 0


def test_what_may_change_on_resuming(job, capsys):
    job.action = raising(Preempted("saved"))
    told = ("--engine.devices", 1, "--optimization.micro_batch", 2, "--optimization.batch_tokens",
            4096)  # fmt: skip
    assert status(*TRAIN, *told) == 75
    stored = Path("out/recipe.yaml").read_bytes()
    more = ("--engine.devices", 2, "--workers", 3, "--cache", "c", "--optimization.micro_batch", 4)
    assert status(*TRAIN, *told[4:], *more) == 75
    assert Path("out/recipe.yaml").read_bytes() == stored
    capsys.readouterr()
    assert status(*TRAIN, *told, "--optimization.learning_rate", 1) == 2
    assert "another run, with another optimization.learning_rate;" in capsys.readouterr().err


def test_half_a_launch_ends_with_a_sentence(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert status(*TRAIN) == 2
    assert capsys.readouterr().err.startswith("freezetrain: the environment tells of several")


def test_a_fault_of_ours_has_a_status_of_its_own_and_a_traceback(
    job, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    job.action = raising(ZeroDivisionError("ours"))
    assert status(*TRAIN) == 70
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "this is a fault of freezetrain" in said.splitlines()[-1]


@pytest.mark.parametrize("verbose", [[], ["--verbose"]])
def test_the_traceback_of_bad_input_is_shown_on_demand(job, capsys, monkeypatch, tmp_path, verbose):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FREEZETRAIN_VERBOSE", "")  # put back after the test
    job.action = raising(UserError("bad"))
    assert status(*TRAIN, *verbose) == 2
    said = capsys.readouterr().err
    assert ("Traceback" in said) == bool(verbose)
    assert said.splitlines()[-1] == "freezetrain: bad"
