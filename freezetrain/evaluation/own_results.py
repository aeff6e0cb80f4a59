"""The results file of one run, never written in the place of another's."""

import json
import os
from pathlib import Path
from typing import Any

from freezetrain.errors import UserError
from freezetrain.evaluation.history import Evaluation
from freezetrain.evaluation.ranks import from_first_rank, is_first_rank
from freezetrain.evaluation.results import write_results


def write_own(
    path: str | os.PathLike[str] | None, results: Any, may_replace: bool, base: Evaluation | None
) -> None:
    """Have rank 0 write ``results``, if it has a ``path``; every rank must call this.

    Unless it ``may_replace`` what is there, a file whose first evaluation is not ``base`` is of
    another run. Raises ``UserError``, on all ranks, for that and for a path that cannot be written.
    """
    refusal = None
    if path is not None and is_first_rank():
        try:
            if not may_replace and Path(path).exists() and not _begins_with(base, Path(path)):
                raise UserError(
                    f"the results file {str(path)!r} exists, of another run; choose another path, "
                    "or give overwrite=True"
                )
            write_results(path, results)
        except UserError as error:
            refusal = str(error)
    refusal = from_first_rank(refusal)
    if refusal is not None:
        raise UserError(refusal)


def _begins_with(base: Evaluation | None, path: Path) -> bool:
    if base is None:
        return False
    try:
        first = json.loads(path.read_text(encoding="utf-8"))["evaluations"][0]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return json.dumps(first) == json.dumps(base.to_dict())
