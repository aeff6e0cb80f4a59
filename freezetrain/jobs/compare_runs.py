"""The runs of a comparison: which there are, and one of them, trained and evaluated."""

import json
import platform
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from freezetrain.errors import CheckError, DivergedError, UserError
from freezetrain.evaluation import evaluate_documents, forgetting
from freezetrain.evaluation.results import write_results
from freezetrain.jobs import train
from freezetrain.jobs.compare_regions import Prepared
from freezetrain.jobs.evaluate import held_out_documents, window_length
from freezetrain.jobs.outcome import claim, differences
from freezetrain.models import load_model, load_tokenizer, on_gpu
from freezetrain.recipe import CompareRecipe, TrainRecipe, changeable
from freezetrain.recipe.names import file_name

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
        told = asdict(told_of(recipe, prepared, one))
        changed = differences(made["recipe"], told)
        if other := [name for name in changed if name not in changeable(made["recipe"])]:
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
        write_results(one.folder / _RESULTS, {**made, "recipe": recipe})
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
