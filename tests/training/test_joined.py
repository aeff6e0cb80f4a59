"""One training job with what others test one by one: the command on two ranks, killed, resumed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import yaml
from command_runs import Run
from logged import Points, csv_points, mlflow_points, wandb_points
from transformers import AutoModelForCausalLM

from freezetrain.freezing import compare_weights
from freezetrain.freezing.weights_folder import WeightsFolder
from freezetrain.recipe.sources import BUILT_IN_MODEL, ModelSource
from freezetrain.regions import Region

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(900)]

STEPS, SAVED, LOGGED = 14, 4, 6
TIMED = ("time/", "train/tokens_per_second", "train/memory", "train/hours_left")
EXTRAS = [name for name in ("wandb", "mlflow") if find_spec(name) is not None]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, udhr) -> dict:
    """ZeRO-2, Lion, compiled blocks, a dotted field of streamed files, replay, a region, loggers"""
    folder = tmp_path_factory.mktemp("joined")
    (folder / "texts").mkdir()
    for name, language in udhr.items():
        with (folder / "texts" / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for number, text in enumerate([*language.train, *language.test]):
                file.write(json.dumps({"id": number, "meta": {"text": text}}) + "\n")
    model = AutoModelForCausalLM.from_pretrained(ModelSource(BUILT_IN_MODEL).place)
    Region.random(model, 0.01, seed=3).save(folder / "region.safetensors")
    texts = {"folder": str(folder / "texts"), "text_field": "meta.text", "key_field": "id"}
    streamed = {**texts, "streaming": True}
    tracked = {"tracking_uri": f"sqlite:///{folder}/mlflow.db", "experiment": "languages"}
    options = {"wandb": {"mode": "offline", "project": "languages"}, "mlflow": tracked}
    return {
        "model": {"path": BUILT_IN_MODEL},
        "texts": streamed,
        "languages": ["zh"],
        "replay": {"texts": streamed, "languages": ["en"], "share": 0.25},
        "region": str(folder / "region.safetensors"),
        "optimization": {
            "max_steps": STEPS, "sequence_length": 64, "micro_batch": 2, "batch_tokens": 512,
            "optimizer": "lion", "learning_rate": 1e-3, "warmup_steps": 2, "weight_decay": 0.1,
        },
        "engine": {"kind": "zero-2", "devices": 2, "compile": True},
        "watch": {
            "texts": texts, "languages": ["es", "zh"], "every_n_steps": SAVED, "documents": 4,
        },
        "logger": ["csv", *EXTRAS],
        **{name: options[name] for name in EXTRAS},
        "checkpoint_every": SAVED,
        "workers": 1,
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(recipe, tmp_path_factory) -> tuple[Run, Run]:
    """One that ran through, and one whose first process was killed after a saved step."""
    folder = tmp_path_factory.mktemp("runs")
    whole, killed = Run(folder / "whole", recipe), Run(folder / "killed", recipe)
    for run in (whole, killed):
        run.folder.with_suffix(".yaml").write_text(yaml.safe_dump(recipe))
    through(whole)
    kill(killed)
    through(killed)
    return whole, killed


def begun(run: Run) -> subprocess.Popen:
    """The command as a user gives it, in a session of its own."""
    words = ["train", str(run.folder.with_suffix(".yaml")), "--out", str(run.folder)]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    for name in [name for name in environment if name.startswith(("WANDB_", "MLFLOW_"))]:
        del environment[name]
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "WANDB_ERROR_REPORTING": "false"}
    with run.folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "freezetrain", *words],
            env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def through(run: Run) -> None:
    process = begun(run)
    try:
        assert process.wait() == 0, run.folder.with_suffix(".log").read_text()
    finally:
        end(process)


def kill(run: Run) -> None:
    """SIGKILL of all at once, a step after one that was saved has been logged."""
    process, rows = begun(run), run.folder / "csv" / "metrics.csv"
    try:
        while process.poll() is None and str(LOGGED) not in logged_steps(rows):
            time.sleep(0.01)
        assert process.poll() is None, run.folder.with_suffix(".log").read_text()
        # Weights & Biases writes each second, in another process; what is later may be lost.
        ranks = [each for each in started_by(process) if "train" in (each.info["cmdline"] or ())]
        assert len(ranks) == 2
        for rank in ranks:
            rank.suspend()
        time.sleep(3)
    finally:
        end(process)
    assert not (run.folder / "model").exists()
    assert process.returncode == -signal.SIGKILL


def end(process: subprocess.Popen) -> None:
    """SIGKILL of all that it has started, also of what is left when it has ended itself."""
    for each in started_by(process):
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def started_by(process: subprocess.Popen) -> list[psutil.Process]:
    found = []
    for each in psutil.process_iter(["cmdline"]):
        with suppress(ProcessLookupError):  # it has ended
            if os.getsid(each.pid) == process.pid:
                found.append(each)
    return found


def logged_steps(rows: Path) -> set[str]:
    if not rows.exists():
        return set()
    with rows.open(newline="", encoding="utf-8") as file:
        return {row["step"] for row in csv.DictReader(file) if row.get("train/loss")}


def untimed(points: Points) -> Points:
    """What does not depend on the clock."""
    return {name: found for name, found in points.items() if not name.startswith(TIMED)}


def test_it_ends_with_the_bits_of_a_run_that_nobody_killed(runs, recipe):
    whole, killed = runs
    assert killed.results["resumed_from"] == f"step={SAVED}.ckpt"
    assert whole.results["resumed_from"] is None
    mine, theirs = killed.weights, whole.weights
    assert mine.keys() == theirs.keys()
    assert all(mine[name].equal(value) for name, value in theirs.items())
    for name in ("data", "forgetting", "final_loss", "frozen_entries"):
        assert killed.results[name] == whole.results[name], name
    assert killed.evaluations == whole.evaluations

    region, base = Region.load(recipe["region"]), WeightsFolder(ModelSource(BUILT_IN_MODEL).place)
    compared = compare_weights({name: base[name] for name in base}, mine, region)
    assert (compared.moved, compared.checked) == (0, region.count)
    assert compared.changed > 1_000_000


def test_the_csv_file_has_each_step_once_with_the_values_of_that_run(runs):
    whole, killed = runs
    points = untimed(csv_points(killed.folder))
    assert points == untimed(csv_points(whole.folder))
    assert [step for step, _ in points["train/loss"]] == list(range(1, STEPS + 1))
    evaluated = [0, *range(SAVED, STEPS, SAVED), STEPS]
    for name in ("mean", "worst", "target_gain", "es/delta_nll_per_byte", "zh/perplexity"):
        assert [step for step, _ in points[f"forgetting/{name}"]] == evaluated
    assert [step for step, _ in points["final/mean"]] == [STEPS]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_the_other_loggers_hold_the_same(runs, recipe, name):
    """Steps between the saved one and the kill were made twice, and are there twice, the same."""
    if name not in EXTRAS:
        pytest.skip(f"{name} is not installed: pip install '.[{name}]'")
    read = {"wandb": points_of_wandb, "mlflow": points_of_mlflow}[name]
    _, killed = runs
    for run in runs:
        expected = untimed(csv_points(run.folder))
        points = untimed(read(run, recipe))
        assert {name: sorted(set(found)) for name, found in points.items()} == expected
        steps = sorted(step for step, _ in points["train/loss"])
        twice = sorted({step for step in steps if steps.count(step) > 1})
        assert twice == list(range(SAVED + 1, SAVED + 1 + len(twice)))
        assert len(twice) >= LOGGED - SAVED if run is killed else not twice
        assert len(steps) == STEPS + len(twice)


def points_of_wandb(run: Run, recipe: dict) -> Points:
    """Of all starts of the run, which have one id."""
    told = json.loads((run.folder / "logged_runs.json").read_text())["wandb"]
    points: Points = {}
    for folder in sorted((run.folder / "wandb").glob("offline-run-*")):
        assert folder.name.endswith(f"-{told['id']}")
        for name, found in wandb_points(folder)[0].items():
            points[name] = points.get(name, []) + found
    return points


def points_of_mlflow(run: Run, recipe: dict) -> Points:
    from mlflow import MlflowClient

    client = MlflowClient(recipe["mlflow"]["tracking_uri"])
    experiment = client.get_experiment_by_name("languages").experiment_id
    (found,) = (
        each for each in client.search_runs([experiment]) if each.info.run_name == run.folder.name
    )
    assert found.info.status == "FINISHED"
    return mlflow_points(client, found.info.run_id)
