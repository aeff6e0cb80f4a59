"""The runs of a comparison: which there are, and how they are spread over devices."""

import multiprocessing
import os
import platform
import shutil
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from freezetrain import remarks
from freezetrain.compare.prepare import Prepared
from freezetrain.compare.recipe import CompareRecipe
from freezetrain.compare.results import RunResult
from freezetrain.errors import CheckError, DivergedError, Preempted, UserError
from freezetrain.evaluation import Forgetting, evaluate_documents, forgetting
from freezetrain.files import write_json
from freezetrain.measuring.held_out import held_out_documents, window_length
from freezetrain.models import load_model, load_tokenizer, on_gpu
from freezetrain.ranks import end_with_parent
from freezetrain.recipe.check import file_name
from freezetrain.run_folder import changed_fields, claim
from freezetrain.training import train
from freezetrain.training.recipe import TrainRecipe
from freezetrain.user_files import read_json, reading

_RESULTS = "results.json"

_ANEW = "delete the folder of this run, it is then made anew"


@dataclass(frozen=True)
class Run:
    """One variant at one learning rate and seed. ``folder`` is its own."""

    variant: str
    learning_rate: float
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.variant}, learning rate {self.learning_rate:g}, seed {self.seed}"

    @property
    def done(self) -> bool:
        return (self.folder / _RESULTS).is_file()

    def read(self) -> dict[str, Any]:
        """What it left: its figures, ``forgetting`` in full and its ``recipe``."""
        path = self.folder / _RESULTS
        values: dict[str, Any] = read_json(path, "the results of a run in", _ANEW)
        return values

    def read_result(self) -> RunResult:
        values = self.read()
        with reading("the results of a run in", self.folder / _RESULTS, _ANEW):
            figures = {key: values[key] for key in values if key not in ("forgetting", "recipe")}
            return RunResult.from_dict(asdict(self.result()) | figures)

    def result(self, **figures: Any) -> RunResult:
        """A result of this run."""
        return RunResult(self.variant, self.learning_rate, self.seed, **figures)

    def tidy(self, keep_models: bool) -> None:
        """Remove what training left, once the figures are there."""
        if not keep_models:
            shutil.rmtree(self.folder / "training", ignore_errors=True)


def grid(recipe: CompareRecipe, folder: Path) -> list[Run]:
    """All runs of the recipe, seed by seed: stopped early, they still compare all variants."""
    seeds = dict.fromkeys(seed for name in recipe.variants for seed in recipe.seeds_of(name))
    return [
        Run(name, rate, seed, folder / file_name(name) / f"{rate}-seed{seed}")
        for seed in seeds
        for name in recipe.variants
        if seed in recipe.seeds_of(name)
        for rate in recipe.rates_of(name)
    ]


def training_of(recipe: CompareRecipe, run: Run) -> TrainRecipe:
    """How a run is trained, but for where the comparison's folder lies: what tells it apart."""
    return recipe.training(run.variant, run.learning_rate, run.seed)


def missing_runs(recipe: CompareRecipe, runs: Iterable[Run]) -> list[Run]:
    """Those still to be run. UserError for one that was run with other settings."""
    missing = []
    for run in runs:
        if not run.done:
            missing.append(run)
            continue
        changed = changed_fields(run.read()["recipe"], training_of(recipe, run))
        if changed:
            raise UserError(
                f"{run.folder} holds the run with another {', '.join(changed[:5])}; call the "
                "changed variant by another name, or give --out a new folder"
            )
    return missing


class Trials:
    """Trains and evaluates runs, one after another, in this process."""

    def __init__(self, recipe: CompareRecipe, prepared: Prepared) -> None:
        self._recipe = recipe
        self._prepared = prepared
        self._documents = held_out_documents(recipe.train.watch, load_tokenizer(recipe.train.model))

    def make(self, run: Run) -> RunResult:
        """Train, evaluate what the run would export, and leave the figures in its folder.

        Training that was interrupted goes on from its last checkpoint. One that comes to a loss
        that is not finite is a result, too: ``failed`` says so. Raises what `freezetrain train`
        raises for all else.
        """
        training, recipe = run.folder / "training", training_of(self._recipe, run)
        claim(training, recipe, resumable=True)
        details = None
        try:
            result, details = self._trained(run, training)
        except DivergedError as error:
            reason = str(error).partition(";")[0]
            result = run.result(seconds=0.0, failed=reason, machine=_machine())
        more = {"forgetting": details and details.to_dict(), "recipe": asdict(recipe)}
        write_json(run.folder / _RESULTS, {**result.to_dict(), **more})
        run.tidy(self._recipe.keep_models)
        return result

    def _trained(self, run: Run, training: Path) -> tuple[RunResult, Forgetting]:
        folder = self._prepared.folder
        recipe = self._recipe.training(run.variant, run.learning_rate, run.seed, folder)
        outcome = train.run(recipe, training, table=False, progress=False, name=run.name)
        watch = self._recipe.train.watch
        source = replace(recipe.model, path=str(training / "model"), revision=None)
        model = on_gpu(load_model(source))
        try:
            adapted = evaluate_documents(
                model,
                self._documents,
                max_length=window_length(watch, model),
                overlap=watch.overlap,
                batch_tokens=watch.batch_tokens,
            )
        except CheckError as error:  # the NLL of some text is not finite
            raise DivergedError(str(error)) from error
        details = forgetting(self._prepared.base, adapted, self._recipe.target)
        result = run.result(
            gain=details.target_gain,
            mean=details.mean,
            worst=details.worst[1],
            worst_language=details.worst[0],
            languages={
                code: language.delta_nll_per_byte for code, language in details.languages.items()
            },
            # Of this start alone, nothing where an earlier one made the last step.
            seconds=outcome.results["throughput"].get("seconds"),
            tokens=outcome.results["steps"] * recipe.optimization.step_tokens,
            machine=_machine(),
        )
        return result, details


def _machine() -> str:
    """What a run was made on, as far as the machine says."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def runs_together(recipe: CompareRecipe) -> int:
    """Runs that are trained at once: on each GPU, or the CPU, as many as the recipe says."""
    return max(1, torch.cuda.device_count()) * recipe.runs_at_once


def run_all(
    recipe: CompareRecipe, prepared: Prepared, runs: Sequence[Run]
) -> Iterator[tuple[Run, RunResult | Exception]]:
    """Each run and what it gave, as soon as it is done; in processes where several run at once.

    What a run raises is given in the place of its figures, so that the others go on. CheckError
    where a process was killed, by want of memory for one.
    """
    together = min(runs_together(recipe), len(runs))
    if together <= 1:
        trials = Trials(recipe, prepared) if runs else None
        for run in runs:
            assert trials is not None
            yield run, _tried(trials, run)
        return
    context = multiprocessing.get_context("spawn")  # a GPU that is in use cannot be forked
    places = context.Queue()
    for place in range(together):
        places.put(place)
    pool = ProcessPoolExecutor(together, context, _begin, (places, together, recipe, prepared))
    waiting = iter(runs)
    under_way: dict[Future[RunResult | Exception], Run] = {}
    try:
        while True:
            # No more than run at once: where this ends early, none is begun after it.
            for run in islice(waiting, together - len(under_way)):
                under_way[pool.submit(_make, run)] = run
            if not under_way:
                return
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                yield under_way.pop(future), future.result()
    except BrokenProcessPool as error:
        raise CheckError(
            "a process that trained a run was killed, by want of memory perhaps; runs that were "
            "done are kept: give the same command again, with a smaller runs_at_once"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


# Of a process that trains runs beside others.
_comparison: tuple[CompareRecipe, Prepared] | None = None

_trials: Trials | None = None


def _begin(places: Any, together: int, recipe: CompareRecipe, prepared: Prepared) -> None:
    """In a new process: its device, its share of the cores."""
    global _comparison
    end_with_parent()
    remarks.keep_back()
    # Ctrl-C reaches all processes: one that trains saves its step first, others just end.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    place = places.get()
    if (gpus := visible_gpus()) is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // together))
    _comparison = recipe, prepared


def visible_gpus() -> list[str] | None:
    """What CUDA_VISIBLE_DEVICES would call the GPUs at hand; None without any."""
    # Asked of the driver, not of CUDA, which would hold on to them.
    count = torch.cuda.device_count()
    if not count:
        return None
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def _make(run: Run) -> RunResult | Exception:
    global _trials
    if _trials is None:  # here, where what it raises reaches the parent
        assert _comparison is not None
        _trials = Trials(*_comparison)
    return _tried(_trials, run)


def _tried(trials: Trials, run: Run) -> RunResult | Exception:
    try:
        return trials.make(run)
    except Preempted:
        raise
    except Exception as error:
        error.add_note(f"in the run {run.name}")
        return error
