"""Benchmark tasks through lm-evaluation-harness, an optional extra."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freezetrain.errors import UserError, near_misses
from freezetrain.evaluation.benchmarks import Score, Scores
from freezetrain.evaluation.figures import finite_or_none
from freezetrain.extras import imported_for
from freezetrain.hub_network import offline_unless_reachable
from freezetrain.measuring.recipe import Benchmarks
from freezetrain.ranks import from_all_ranks, own_rank, patient_group, together
from freezetrain.user_files import reading, reason

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_RESAMPLES = 1000  # for the error of metrics that are no mean; the harness's 100,000 take minutes


class Harness:
    """Tasks that models are run on, all with the same questions, examples and seed.

    Its Python API is called (https://github.com/EleutherAI/lm-evaluation-harness), with models as
    they are in memory. Tasks whose data are on this machine need no network.

    Raises UserError where the harness is not installed, for unknown tasks, and for tasks that
    cannot be loaded, their data included: before any model is run.
    """

    def __init__(self, settings: Benchmarks) -> None:
        with imported_for("benchmarks", "benchmarks.tasks", ", or leave benchmarks out"):
            from lm_eval.tasks import TaskManager
        self._settings = settings
        where = settings.folder or "lm-evaluation-harness"
        remedy = "correct them, or leave benchmarks out"
        with (
            _quiet(),
            _own_code_alone(settings),
            offline_unless_reachable(),
            reading("the task files in", where, remedy),
        ):
            folder = None if settings.folder is None else Path(settings.folder)
            own = None if folder is None else _own_tasks(folder)
            if own is not None and set(settings.tasks) <= set(own.all_subtasks):
                self._manager = own
            else:  # the harness's thousands of task files take seconds to read
                self._manager = TaskManager(include_path=folder)
            for task in settings.tasks:
                self._require(task, [] if own is None else own.all_tasks)

    def scores(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> Scores:
        """Run the tasks on ``model``, where it is; sets the seeds of torch, numpy and random.

        A group that has a figure of its own counts as one task; other groups, and tags, as the
        tasks in them. Processes that run together take turns at the tasks: all must call this, and
        all get the scores. Raises UserError for a task that the harness refuses to run.
        """
        rank, group = own_rank(), patient_group()
        world = len(from_all_ranks(None, group))
        found: dict[str, Scores] = {}
        with together(group):
            for task in self._settings.tasks[rank::world]:
                found[task] = self._scores_of(task, model, tokenizer)
        everywhere = {
            n: scores for own in from_all_ranks(found, group) for n, scores in own.items()
        }
        return {n: s for task in self._settings.tasks for n, s in everywhere[task].items()}

    def _scores_of(
        self, task: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
    ) -> Scores:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        settings = self._settings
        with _quiet(), _own_code_alone(settings), _as_one_process():
            try:
                results = simple_evaluate(
                    HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch),
                    tasks=[task],
                    num_fewshot=settings.num_fewshot,
                    limit=settings.limit,
                    bootstrap_iters=_RESAMPLES,
                    log_samples=False,
                    task_manager=self._manager,
                    random_seed=settings.seed,
                    numpy_random_seed=settings.seed,
                    torch_random_seed=settings.seed,
                    fewshot_random_seed=settings.seed,
                )
            except (ValueError, OverflowError) as error:  # of word_perplexity, where few are words
                raise UserError(f"lm-evaluation-harness refuses the tasks: {error}") from error
        return scores_of(results)

    def _require(self, task: str, own: list[str]) -> None:
        known = self._manager.all_tasks
        if task not in known:
            theirs = f"; those in {self._settings.folder} are {' '.join(own)}" if own else ""
            raise UserError(
                f"lm-evaluation-harness has no task {task!r}{near_misses(task, known)}{theirs}; "
                "`lm_eval ls tasks` lists its own"
            )
        try:
            self._manager.load([task])
        except Exception as error:  # of its data: a network, a missing file, an unknown format
            raise UserError(
                f"cannot load the task {task!r} of lm-evaluation-harness: {reason(error)}; it "
                "needs its data here, or a network"
            ) from error


def scores_of(results: Mapping[str, Any]) -> Scores:
    """The scores in what ``lm_eval.simple_evaluate`` returns, by the rule of Harness.scores."""
    inside = results["group_subtasks"]
    taken: Scores = {}

    def take(name: str) -> None:
        scores = _scores(name, results)
        if scores or name not in inside:
            taken[name] = scores
            return
        for child in inside[name]:
            take(child)

    nested = {child for children in inside.values() for child in children}
    for name in (name for name in [*inside, *results["results"]] if name not in nested):
        take(name)
    return taken


def _scores(name: str, results: Mapping[str, Any]) -> dict[str, Score]:
    """Numbers of one task or group; the harness spells a key ``metric,filter``."""
    values = results["results"].get(name, {})
    direction = results["higher_is_better"].get(name, {})
    scores = {}
    for key, value in values.items():
        metric, comma, kept = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{kept}")
        scores[metric if kept == "none" else key] = Score(
            finite_or_none(float(value)),
            finite_or_none(float(error)) if isinstance(error, int | float) else None,
            direction.get(metric),
            results.get("n-shot", {}).get(name),
        )
    return scores


def _own_tasks(folder: Path) -> "TaskManager":
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=folder, include_defaults=False)
    if not manager.all_tasks:
        unread = sorted(folder.rglob("*.yaml"))  # the harness passes over those that it cannot read
        found = f"found none but {unread[0]}, which it cannot read" if unread else "found none"
        raise UserError(
            f"expected task files (YAML) of lm-evaluation-harness in benchmarks.folder {folder}, "
            f"{found if folder.is_dir() else 'there is no such folder'}"
        )
    return manager


@contextmanager
def _own_code_alone(settings: Benchmarks) -> Iterator[None]:
    """Have task files run no Python but the harness's own, unless the recipe asks for it.

    Functions that others name (``!function``) are refused, and templates can call none.
    """
    if settings.run_functions:
        yield
        return
    import lm_eval.tasks
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils
    from lm_eval.tasks import _yaml_loader

    own, load = Path(lm_eval.tasks.__file__).parent, _yaml_loader._import_func_in_yml

    def load_own(function: str, folder: Path) -> Any:
        if not Path(folder).resolve().is_relative_to(own.resolve()):
            raise UserError(
                f"a task file in {folder} names the Python function {function!r}, which is not "
                "run; read it, and then say benchmarks.run_functions: true"
            )
        return load(function, folder)

    outside = utils.env
    inside = SandboxedEnvironment(
        loader=outside.loader, undefined=outside.undefined, keep_trailing_newline=True
    )
    inside.filters.update(outside.filters)
    _yaml_loader._import_func_in_yml, utils.env = load_own, inside
    try:
        yield
    finally:
        _yaml_loader._import_func_in_yml, utils.env = load, outside


@contextmanager
def _as_one_process() -> Iterator[None]:
    """The harness gives results where LOCAL_RANK is 0 alone; here each process has its tasks."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's notes, which say nothing of the result, out of the terminal."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
