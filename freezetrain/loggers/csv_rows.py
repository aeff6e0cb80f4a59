"""A CSV file of what is logged, which a resumed run goes on with."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from freezetrain.files import remove_unfinished, whole


class CSVRows(CSVLogger):
    """Lightning's CSVLogger, which deletes the file of an earlier start; this one keeps it.

    ``csv/metrics.csv`` in ``folder``: a row for each call, with its ``step``, and a column for each
    name that was ever logged. ``step``: of the checkpoint that the run goes on from, where rows of
    later steps, which are made again, are left out; -1: none, all are. A row is in the file once
    it is logged, and a kill at any moment leaves the rows before it.
    """

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(folder, name="csv", version="")
        self._step = step

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._experiment = _Rows(self.log_dir, self._step)
        return self._experiment  # type: ignore[return-value]

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        self.save()


class _Rows(ExperimentWriter):
    def __init__(self, folder: str, step: int) -> None:
        self._step = step
        super().__init__(folder)

    def _check_log_dir_exists(self) -> None:
        """Go on with the file that is there, where Lightning deletes it."""
        path = Path(self.metrics_file_path)
        remove_unfinished(path)
        if not path.is_file():
            return
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            names = next(rows, [])
            # What a kill cut off in the midst of a row is of a step that is made again.
            found = [dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names)]
        self.metrics_keys = names
        kept = [row for row in found if row.get("step", "").isdecimal()]
        kept = [row for row in kept if int(row["step"]) <= self._step and not _is_final(row)]
        self._write(names, kept)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self._write(fieldnames, rows)

    def _write(self, names: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
        """The whole file anew, or not at all."""
        with whole(self.metrics_file_path) as new, new.open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, names)
            writer.writeheader()
            writer.writerows(rows)


def _is_final(row: dict[str, str]) -> bool:
    """Of an end that a kill came after: there is another one to come."""
    return any(name.startswith("final/") and value for name, value in row.items())
