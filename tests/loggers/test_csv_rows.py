"""CSV files that resumed runs go on with, read back."""

import csv
import json
import posixpath
import re
from itertools import product
from pathlib import Path

import pytest
from logged import csv_points

from freezetrain.errors import UserError
from freezetrain.escaping import for_mlflow
from freezetrain.evaluation.history import language_tag
from freezetrain.loggers import csv_rows
from freezetrain.loggers.csv_rows import CSVRows
from freezetrain.loggers.opening import opened
from freezetrain.loggers.recipe import Mlflow, Wandb
from freezetrain.recipe.text_types import check_name

NAMES = ["train/loss", 'forgetting/a,b\n"c"/accuracy']


def log(folder: Path, step: int, *rows: tuple[int, dict[str, float]]) -> None:
    """One start, as a kill leaves it: nothing is finalized."""
    logger = CSVRows(folder, step)
    for at, values in rows:
        logger.log_metrics(values, step=at)


def test_each_step_stands_once_over_all_starts(tmp_path):
    log(tmp_path, -1, (0, {NAMES[1]: 0.5}), (1, {NAMES[0]: 3.0}), (2, {NAMES[0]: 2.0}))
    log(tmp_path, 1, (2, {NAMES[0]: 2.5}), (3, {NAMES[1]: 0.25, "pull/a": 1.0}))
    log(tmp_path, 3, (4, {"final/mean": 0.5}))
    log(tmp_path, 4, (4, {"final/mean": 0.75}))  # killed after it had ended
    assert csv_points(tmp_path) == {
        NAMES[0]: [(1, 3.0), (2, 2.5)],
        NAMES[1]: [(0, 0.5), (3, 0.25)],
        "pull/a": [(3, 1.0)],
        "final/mean": [(4, 0.75)],
    }
    log(tmp_path, -1, (0, {"train/loss": 9.0}))  # killed before its first checkpoint: all anew
    assert csv_points(tmp_path) == {"train/loss": [(0, 9.0)]}


def test_a_row_that_a_kill_cut_off_is_left_out(tmp_path):
    log(tmp_path, -1, *((step, {"a": step, "b": 1.0}) for step in (1, 2)))
    path = tmp_path / "csv" / "metrics.csv"
    path.write_text(path.read_text() + "3.0,1")
    log(tmp_path, 3, (4, {"a": 4.0}))
    assert csv_points(tmp_path)["a"] == [(1, 1.0), (2, 2.0), (4, 4.0)]


def test_a_kill_while_a_column_is_added_leaves_the_rows_before(tmp_path, monkeypatch):
    log(tmp_path, -1, (1, {"a": 1.0}))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(csv_rows.csv.DictWriter, "writerows", killed)
    with pytest.raises(KeyboardInterrupt):
        log(tmp_path, 1, (2, {"b": 1.0}))
    assert csv_points(tmp_path) == {"a": [(1, 1.0)]}


def test_settings_and_rows_are_in_the_files_that_the_page_names(tmp_path):
    with opened(["csv"], Wandb(), Mlflow(), tmp_path, "run", -1) as (logger,):
        logger.log_hyperparams({"optimization": {"learning_rate": 0.5}})
        logger.log_metrics({"train/loss": 1.0}, step=1)
        with (tmp_path / "csv" / "metrics.csv").open(newline="") as file:
            assert list(csv.DictReader(file)) == [{"train/loss": "1.0", "step": "1"}]
    assert "learning_rate: 0.5" in (tmp_path / "csv" / "hparams.yaml").read_text()


def test_other_ranks_and_none_have_no_logger(tmp_path, monkeypatch):
    place = Wandb(), Mlflow(), tmp_path, "run", -1
    with opened(["none"], *place) as loggers:
        assert loggers == []
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    with opened(["csv", "tensorboard"], *place) as loggers:
        assert loggers == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["[", "[1]", json.dumps({"mlflow": {"place": [None, None], "id": "../x"}}), "{}x"]
)
def test_a_damaged_note_of_runs_is_one_sentence(tmp_path, content):
    from freezetrain.loggers.opening import _earlier

    (tmp_path / "logged_runs.json").write_text(content)
    with pytest.raises(UserError, match=r"cannot read the runs that were logged.*; delete it"):
        _earlier(tmp_path, "mlflow", [None, None])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("forgetting/中文/perplexity", "forgetting/中文/perplexity"),
        ("forgetting/a+b*(c)/x", "forgetting/a-2b-b-2a--28-c-29-/x"),
        ("pull/regions//a/../b", "pull/regions/-2f-a/-2e--2e-/b"),
        ("forgetting/a\nb", "forgetting/a-5c-nb"),
    ],
)
def test_names_that_mlflow_takes(name, expected):
    assert for_mlflow(name) == expected


def test_no_two_names_are_the_same_in_mlflow():
    names = ["".join(signs) for n in range(6) for signs in product("-2f+./", repeat=n)]
    taken = [for_mlflow(name) for name in names]
    assert len(set(taken)) == len(names) > 9_000
    for name in taken[1:]:
        assert re.fullmatch(r"[\w\-./ ]+", name), name
        assert posixpath.normpath(name) == name, "as MLflow asks"


FIGURES = ("perplexity", "bits_per_byte", "accuracy", "delta_nll_per_byte")


@pytest.mark.parametrize("sign", ["+", "\u200b", "\U0001f600", "中"])
def test_the_longest_names_keep_to_what_mlflow_takes(sign):
    """250 characters, and 255 bytes of a file's name, where runs are in a folder."""
    longest = sign * (200 // len(sign.encode()))  # as recipes take names
    check_name(longest)
    languages = [longest, longest[:-1] + "a", longest[:-1] + "b"]
    taken = {
        language: [for_mlflow(language_tag(language, figure)) for figure in FIGURES]
        for language in languages
    }
    assert len({name for names in taken.values() for name in names}) == 3 * len(FIGURES)
    for names in taken.values():
        assert {name.rpartition("/")[2] for name in names} == set(FIGURES)
        assert len({name.rpartition("/")[0] for name in names}) == 1, "one group a language"
        assert max(len(name.encode()) for name in names) <= 250
        assert all(re.fullmatch(r"[\w\-./ ]+", name) for name in names)
        assert all(posixpath.normpath(name) == name for name in names)
    settings = [for_mlflow(f"pull/regions/{'/a' * 2_000}{end}") for end in ("b", "c")]
    assert len({*settings}) == 2
    assert {len(name) for name in settings} == {250}
    assert all(posixpath.normpath(name) == name for name in settings)
