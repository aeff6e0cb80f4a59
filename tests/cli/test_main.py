"""Who claims the folder, who writes, who prints; and the status that each rank ends with."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from freezetrain.cli import main
from freezetrain.errors import CheckError, Interrupted, Preempted, UserError
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
    [
        (UserError("bad"), 2),
        (CheckError("moved"), 1),
        (Preempted("saved"), 75),
        (Interrupted("saved"), 130),
    ],
)
def test_status_and_sentence(job, monkeypatch, capsys, error, code):
    job.action = raising(error)
    assert status(*TRAIN) == code
    saved = isinstance(error, Preempted)
    way_on = ": freezetrain train --model x --out out" if saved else ""
    assert capsys.readouterr().err == f"freezetrain: {error}{way_on}\n"
    torchrun(monkeypatch, 1)
    assert status(*TRAIN) == code
    said = capsys.readouterr().err
    assert said == ("" if saved else f"freezetrain: rank 1: {error}\n")


def test_a_process_of_lightnings_that_was_preempted_did_not_fail(job, monkeypatch, tmp_path):
    """Lightning kills rank 0, which is to end with 75, when one that it started fails."""
    child(monkeypatch, tmp_path / "out")
    job.action = raising(Preempted("saved"))
    assert status("train", "--model", "x") == 0


def saving(error):
    def action(folder):
        (folder / "checkpoint").write_text("5")
        raise error

    return action


def interrupting(*files):
    """Ctrl-C in a job that has left these files."""

    def action(folder):
        for file in files:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).touch()
        raise KeyboardInterrupt

    return action


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((), "nothing is kept: begin again with freezetrain train --model 'a b' --out "),
        (("forgetting.json",), "no step was saved: begin again with freezetrain train --model "),
        (
            ("checkpoints/step=9.ckpt", "checkpoints/step=10.ckpt", "checkpoints/.step=11.ckpt"),
            "the last checkpoint, runs/x/checkpoints/step=10.ckpt; go on with freezetrain train ",
        ),
    ],
)
def test_ctrl_c_says_what_is_kept_and_how_to_go_on(job, monkeypatch, capsys, files, said):
    monkeypatch.setattr("freezetrain.run_folder.default_folder", lambda verb: Path("runs/x"))
    job.action = interrupting(*files)
    assert status("train", "--model", "a b") == 130
    sentence = capsys.readouterr().err
    assert sentence.startswith("freezetrain: stopped by Ctrl-C; ")
    assert said in sentence
    assert sentence.endswith(" train --model 'a b' --out runs/x\n")
    assert Path("runs").exists() == bool(files)


def test_ctrl_c_in_a_verb_that_cannot_go_on(monkeypatch, capsys):
    job = SimpleNamespace(run=lambda recipe, folder: interrupting()(folder))
    monkeypatch.setitem(sys.modules, "freezetrain.analysis.info", job)
    assert status("info", "x", "--out", "a/b/c") == 130
    said = capsys.readouterr().err
    assert said == "freezetrain: stopped by Ctrl-C; nothing is kept, and info begins anew\n"
    assert not Path("a").exists()
    job.run = lambda recipe, folder: interrupting("half")(folder)
    assert status("info", "x", "--out", "a") == 130
    assert "a keeps what was made so far, from which info cannot go on" in capsys.readouterr().err


def test_ctrl_c_before_there_is_a_folder(monkeypatch, capsys):
    def stopped(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("freezetrain.cli.parse", stopped)
    assert status(*TRAIN) == 130
    said = capsys.readouterr().err
    assert said == "freezetrain: stopped by Ctrl-C before anything was made\n"


def test_preempted_goes_on_with_the_same_command(job):
    job.action = saving(Preempted("saved"))
    assert status(*TRAIN) == 75
    job.action = lambda folder: Outcome({"resumed": (folder / "checkpoint").read_text()})
    assert status(*TRAIN) == 0


def test_what_may_change_on_resuming(job, capsys):
    job.action = saving(Preempted("saved"))
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


def test_a_process_that_is_gone_is_no_fault_of_ours(job, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    job.action = raising(RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"))
    assert status(*TRAIN) == 71
    said = capsys.readouterr().err
    assert said.startswith("freezetrain: another process of this job has ended")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("verbose", [[], ["--verbose"]])
def test_the_traceback_of_bad_input_is_shown_on_demand(job, capsys, monkeypatch, tmp_path, verbose):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FREEZETRAIN_VERBOSE", "")  # put back after the test
    job.action = raising(UserError("bad"))
    assert status(*TRAIN, *verbose) == 2
    said = capsys.readouterr().err
    assert ("Traceback" in said) == bool(verbose)
    assert said.splitlines()[-1] == "freezetrain: bad"
