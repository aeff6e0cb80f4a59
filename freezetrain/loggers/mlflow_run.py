"""A run of MLflow: names that it takes, settings that a resumed run may have changed, errors."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.logger import _flatten_dict
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from freezetrain.errors import UserError
from freezetrain.escaping import for_mlflow
from freezetrain.user_files import reason

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_AT_ONCE = 100  # parameters in a call: MLflow takes no more
_LONGEST = 250  # characters of a parameter: every version takes as many


class MLFlowRun(MLFlowLogger):
    """Lightning's MLFlowLogger, which strikes letters that are not ASCII from names; not this one.

    Parameters that the run has stay as they are: MLflow lets none be changed. What MLflow raises
    becomes a UserError.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        named = [
            Metric(key=for_mlflow(name), value=float(value), timestamp=now, step=step or 0)
            for name, value in metrics.items()
        ]
        with said("write to the run in"):
            self.experiment.log_batch(run_id=self.run_id, metrics=named)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:  # type: ignore[override]
        from mlflow.entities import Param

        flat = {for_mlflow(name): str(value) for name, value in _flatten_dict(dict(params)).items()}
        with said("write to the run in"):
            there = self.experiment.get_run(self.run_id).data.params
            new = [Param(name, text[:_LONGEST]) for name, text in flat.items() if name not in there]
            for first in range(0, len(new), _AT_ONCE):
                self.experiment.log_batch(run_id=self.run_id, params=new[first : first + _AT_ONCE])

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        with said("end the run in"):
            super().finalize(status)

    @property
    def tracking_uri(self) -> str:
        return self._tracking_uri

    @property
    @rank_zero_experiment
    def experiment(self) -> "MlflowClient":
        # Lightning's sets the address of all of MLflow in this process, and in its environment.
        assert self._initialized, "begin() comes first"
        return self._mlflow_client

    def require_server(self) -> None:
        """UserError where MLflow gives no answer."""
        with said("reach"):
            self._mlflow_client.get_experiment_by_name(self._experiment_name)

    def begin(self, earlier: str | None) -> str:
        """Make the run, or go on with the ``earlier`` one where it is still there; its id."""
        from mlflow.tracking.context.registry import resolve_tags

        client = self._mlflow_client
        with said("begin a run in"):
            run = None if earlier is None else self._active(earlier)
            if run is None:
                found = client.get_experiment_by_name(self._experiment_name)
                number = found and found.experiment_id
                number = number or client.create_experiment(self._experiment_name)
                run = client.create_run(number, tags=resolve_tags(), run_name=self._run_name)
            client.update_run(run.info.run_id, status="RUNNING")
        self._run_id, self._experiment_id = run.info.run_id, run.info.experiment_id
        self._initialized = True
        return str(run.info.run_id)

    def _active(self, run_id: str) -> "Run | None":
        """None where it is not there, or was deleted."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._mlflow_client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None


@contextmanager
def said(what: str) -> Iterator[None]:
    """A UserError instead of what MLflow raises inside."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, ImportError) as error:
        if "MLFLOW_ALLOW_FILE_STORE" in str(error):
            raise UserError(
                "MLflow takes no folder for its runs any more, unless the variable "
                "MLFLOW_ALLOW_FILE_STORE says true; set it, or give mlflow.tracking_uri a "
                "database, as sqlite:///mlflow.db"
            ) from error
        why = without_password(reason(RuntimeError(str(error))))
        raise UserError(
            f"logger: cannot {what} MLflow: {why}; check mlflow.tracking_uri and "
            "mlflow.experiment, or leave mlflow out of logger, and give the command again"
        ) from error


def without_password(text: str) -> str:
    """``text`` without what stands before the host in addresses: ``http://user:password@host``."""
    return re.sub(r"//[^/@\s]*@", "//", text)
