"""The loggers of a run: what they need is there, opened on rank 0, gone on with, and ended."""

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from freezetrain.errors import Preempted
from freezetrain.extras import require
from freezetrain.files import write_json
from freezetrain.loggers import wandb_run
from freezetrain.loggers.csv_rows import CSVRows
from freezetrain.loggers.mlflow_run import MLFlowRun, said, without_password
from freezetrain.loggers.recipe import Kind, Mlflow, Wandb
from freezetrain.ranks import current_launch
from freezetrain.user_files import read_json, reading

_RUNS = "logged_runs.json"

_ANEW = "delete it, and what follows is logged as another run"


def require_loggers(
    kinds: Sequence[Kind], wandb: Wandb, mlflow: Mlflow, connect: bool = False
) -> None:
    """UserError where a package is missing; with ``connect``, also where a server says no.

    Nothing is logged. ``connect`` on rank 0 alone.
    """
    for name in ("wandb", "mlflow"):
        if name in kinds:
            require(name, f"logger: {name}", f", or leave {name} out of logger")
    if connect and "wandb" in kinds:
        wandb_run.require_login(wandb)
    if connect and "mlflow" in kinds:
        _mlflow(mlflow, "").require_server()


@contextmanager
def opened(
    kinds: Sequence[Kind], wandb: Wandb, mlflow: Mlflow, folder: Path, name: str, step: int
) -> Iterator[list[Logger]]:
    """Lightning's loggers, on rank 0, ended when the block is left; none on other ranks.

    ``folder``: the run's, which keeps what an earlier start left there and says in
    ``logged_runs.json`` which runs it made elsewhere: those are gone on with, unless they are
    asked for in another place. ``name``: of a run that is given none. ``step``: of the checkpoint
    that training goes on from; -1: there is none. What an earlier start logged of later steps is
    left out of TensorBoard and CSV files, in which each step stands once; elsewhere it stays.

    Raises UserError where a logger cannot be opened.
    """
    loggers: list[Logger] = []
    try:
        if current_launch().rank == 0:
            for kind in kinds:
                loggers += _opened(kind, wandb, mlflow, folder, name, step)
        yield loggers
    except BaseException as error:
        _end(loggers, error)
        raise
    _end(loggers, None)


def _opened(
    kind: Kind, wandb: Wandb, mlflow: Mlflow, folder: Path, name: str, step: int
) -> list[Logger]:
    if kind == "tensorboard":
        return [TensorBoardLogger(folder, name="tensorboard", version="", purge_step=step + 1)]
    if kind == "csv":
        return [CSVRows(folder, step)]
    if kind == "wandb":
        place = [os.environ.get("WANDB_BASE_URL"), wandb.entity, wandb.project]
        run_id = os.environ.get("WANDB_RUN_ID") or _earlier(folder, kind, place)
        run_id = run_id or secrets.token_hex(4)
        _note(folder, kind, place, run_id)  # first: a kill while it begins makes no second one
        return [wandb_run.begin(wandb, folder, name, run_id)]
    if kind == "mlflow":
        logger = _mlflow(mlflow, name)
        place = [without_password(logger.tracking_uri), mlflow.experiment]
        run_id = os.environ.get("MLFLOW_RUN_ID") or _earlier(folder, kind, place)
        _note(folder, kind, place, logger.begin(run_id))
        return [logger]
    return []


def _mlflow(options: Mlflow, name: str) -> MLFlowRun:
    import mlflow

    experiment = options.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    address = options.tracking_uri or mlflow.get_tracking_uri()
    with said("reach"):
        return MLFlowRun(experiment or "freezetrain", options.name or name, address)


def _earlier(folder: Path, kind: Kind, place: Sequence[str | None]) -> str | None:
    """The id of the run that an earlier start made in this very ``place``."""
    path = folder / _RUNS
    if not path.is_file():
        return None
    with reading("the runs that were logged, in", path, _ANEW):
        run = read_json(path, "the runs that were logged, in", _ANEW).get(kind)
        if run is None or run["place"] != list(place):
            return None
        if not re.fullmatch(r"[\w-]{1,128}", run["id"]):
            raise ValueError(f"{run['id']!r} is no id of a run")
        return str(run["id"])


def _note(folder: Path, kind: Kind, place: Sequence[str | None], run_id: str) -> None:
    path = folder / _RUNS
    runs: dict[str, Any] = {}
    if path.is_file():
        runs = read_json(path, "the runs that were logged, in", _ANEW)
    write_json(path, runs | {kind: {"place": list(place), "id": run_id}})


def _end(loggers: Sequence[Logger], error: BaseException | None) -> None:
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            wandb_run.end(logger, error)
        elif isinstance(logger, MLFlowRun) and isinstance(error, Preempted):
            logger.finalize("KILLED")
        else:
            logger.finalize("success" if error is None else "failed")
