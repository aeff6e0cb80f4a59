"""The runs of a comparison: which there are, and how they are spread over devices."""

import json
import multiprocessing
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from freezetrain.compare.prepare import Prepared
from freezetrain.compare.recipe import CompareRecipe
from freezetrain.errors import CheckError, DivergedError, Preempted, UserError
from freezetrain.evaluation import evaluate_documents, forgetting
from freezetrain.files import write_json
from freezetrain.measuring.held_out import held_out_documents, window_length
from freezetrain.models import load_model, load_tokenizer, on_gpu
from freezetrain.ranks import end_with_parent
from freezetrain.recipe.check import file_name
from freezetrain.run_folder import changed_fields, claim
from freezetrain.training import train
from freezetrain.training.recipe import TrainRecipe

Made = dict[str, Any]

_RESULTS = "results.json"


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

    def found(self) -> Made | None:
        """What it gave; None where it is still to be run."""
        path = self.folder / _RESULTS
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def tidy(self, keep_models: bool) -> None:
        """Remove what training left, once the figures are there."""
        if not keep_models:
            shutil.rmtree(self.folder / "training", ignore_errors=True)


def grid(recipe: CompareRecipe, folder: Path) -> list[Run]:
    """All runs of the recipe, seed by seed: stopped early, they still compare all variants."""
    return [
        Run(name, rate, seed, folder / file_name(name) / f"{rate}-seed{seed}")
        for seed in _in_order(recipe.seeds_of(name) for name in recipe.variants)
        for name in recipe.variants
        if seed in recipe.seeds_of(name)
        for rate in recipe.rates_of(name)
    ]


def _in_order(lists: Iterable[list[int]]) -> list[int]:
    """All that are in some of the lists, each once, as they come."""
    return list(dict.fromkeys(seed for one in lists for seed in one))


def told_of(recipe: CompareRecipe, prepared: Prepared, one: Run) -> TrainRecipe:
    """How a run is trained, but for where the comparison's folder lies: what tells it apart."""
    region = prepared.regions.get(one.variant)
    return recipe.training(one.variant, one.learning_rate, one.seed, region)


def missing(recipe: CompareRecipe, prepared: Prepared, runs: Iterable[Run]) -> list[Run]:
    """Those still to be run. UserError for one that was run with other settings."""
    found = []
    for one in runs:
        if (made := one.found()) is None:
            found.append(one)
            continue
        if other := changed_fields(made["recipe"], told_of(recipe, prepared, one)):
            raise UserError(
                f"{one.folder} holds the run with another {', '.join(other[:5])}; call the changed "
                "variant by another name, or give --out a new folder"
            )
    return found


class Trials:
    """Trains and evaluates runs, one after another, in this process.

    ``shown``: with a progress bar of each run's training.
    """

    def __init__(self, recipe: CompareRecipe, prepared: Prepared, shown: bool = False) -> None:
        self._recipe = recipe
        self._prepared = prepared
        self._shown = shown
        self._documents = held_out_documents(recipe.train.watch, load_tokenizer(recipe.train.model))

    def make(self, one: Run) -> Made:
        """Train, evaluate what the run would export, and leave the figures in its folder.

        Training that was interrupted goes on from its last checkpoint. One that comes to a loss
        that is not finite is a result, too: ``failed`` says so. Raises what `freezetrain train`
        raises for all else.
        """
        training = one.folder / "training"
        claim(training, told_of(self._recipe, self._prepared, one), resumable=True)
        made: Made = dict.fromkeys(("gain", "mean", "worst", "tokens", "failed", "forgetting"))
        made |= {"languages": {}, "seconds": 0.0, "machine": _machine()}
        try:
            made |= self._trained(one, training)
        except DivergedError as error:
            made["failed"] = str(error).partition(";")[0]
        recipe = asdict(told_of(self._recipe, self._prepared, one))
        write_json(one.folder / _RESULTS, {**made, "recipe": recipe})
        one.tidy(self._recipe.keep_models)
        return made

    def _trained(self, one: Run, training: Path) -> Made:
        region = self._prepared.region(one.variant)
        told = self._recipe.training(
            one.variant, one.learning_rate, one.seed, region, self._prepared.scores
        )
        outcome = train.run(told, training, table=False, progress=self._shown)
        made: Made = {
            # Of this start alone, nothing where an earlier one made the last step.
            "seconds": outcome.results["throughput"].get("seconds"),
            "tokens": outcome.results["steps"] * told.optimization.step_tokens,
        }
        watch = self._recipe.train.watch
        source = replace(told.model, path=str(training / "model"), revision=None)
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
        found = forgetting(self._prepared.base, adapted, self._recipe.target).to_dict()
        losses = {name: one["delta_nll_per_byte"] for name, one in found["languages"].items()}
        return made | {
            "gain": found["target_gain"],
            "mean": found["mean"],
            "worst": found["worst"],
            "languages": losses,
            "forgetting": found,
        }


def _machine() -> str:
    """What a run was made on, as far as the machine says."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def slots(recipe: CompareRecipe) -> int:
    """Runs that are trained at once: on each GPU, or the CPU, as many as the recipe says."""
    return max(1, torch.cuda.device_count()) * recipe.runs_at_once


def run_all(
    recipe: CompareRecipe, prepared: Prepared, missing: Sequence[Run]
) -> Iterator[tuple[Run, Made | Exception]]:
    """Each run and what it gave, as soon as it is done; in processes where several run at once.

    What a run raises is given in the place of its figures, so that the others go on. CheckError
    where a process was killed, by want of memory for one.
    """
    together = min(slots(recipe), len(missing))
    if together <= 1:
        trials = Trials(recipe, prepared) if missing else None
        for one in missing:
            assert trials is not None
            yield one, _tried(trials, one)
        return
    context = multiprocessing.get_context("spawn")  # a GPU that is in use cannot be forked
    places = context.Queue()
    for place in range(together):
        places.put(place)
    pool = ProcessPoolExecutor(together, context, _begin, (places, together, recipe, prepared))
    todo = iter(missing)
    under_way: dict[Future[Made | Exception], Run] = {}
    try:
        while True:
            # No more than run at once: where this ends early, none is begun after it.
            for one in islice(todo, together - len(under_way)):
                under_way[pool.submit(_make, one)] = one
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


_told: tuple[CompareRecipe, Prepared] | None = None

_trials: Trials | None = None


def _begin(places: Any, together: int, recipe: CompareRecipe, prepared: Prepared) -> None:
    """In a new process: its device, its share of the cores."""
    global _told
    end_with_parent()
    place = places.get()
    if (gpus := visible()) is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // together))
    _told = recipe, prepared


def visible() -> list[str] | None:
    """What CUDA_VISIBLE_DEVICES would call the GPUs at hand; None without any."""
    # Asked of the driver, not of CUDA, which would hold on to them.
    count = torch.cuda.device_count()
    if not count:
        return None
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    return told.split(",")[:count] if told else [str(number) for number in range(count)]


def _make(one: Run) -> Made | Exception:
    global _trials
    if _trials is None:  # here, where what it raises reaches the parent
        assert _told is not None
        _trials = Trials(*_told)
    return _tried(_trials, one)


def _tried(trials: Trials, one: Run) -> Made | Exception:
    try:
        return trials.make(one)
    except Preempted:
        raise
    except Exception as error:
        error.add_note(f"in the run {one.name}")
        return error
