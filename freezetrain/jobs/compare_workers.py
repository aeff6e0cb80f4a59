"""The runs of a comparison spread over the devices at hand, several on each if asked to."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any

import torch

from freezetrain.errors import CheckError, Preempted
from freezetrain.jobs.compare_regions import Prepared
from freezetrain.jobs.compare_runs import Made, Run, Trials
from freezetrain.launch import end_with_parent
from freezetrain.recipe import CompareRecipe


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
