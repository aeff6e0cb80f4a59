"""A run as the report shows it: made of live objects, or read from what a run left on the disk."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from freezetrain.errors import CheckError, UserError
from freezetrain.evaluation import Evaluation, Forgetting, History
from freezetrain.evaluation.benchmarks import BenchmarkDrops
from freezetrain.evaluation.brake import Brake, Measure
from freezetrain.evaluation.continuations import Generation
from freezetrain.evaluation.texts import TextFacts
from freezetrain.recipe import yaml12
from freezetrain.report.page import flat
from freezetrain.typed_json import require_types
from freezetrain.user_files import read_json, reading

FORGETTING = "forgetting.json"

UNITS: dict[Measure, str] = {
    "nats_per_byte": "nats per byte",
    "relative": "% of the base’s loss per byte",
    "perplexity": "% of the base’s perplexity",
}
"""What axes say of a loss in the measure of a brake."""


@dataclass(frozen=True)
class RegionFacts:
    """What the region of a run is, where it lies, and what training did to its entries."""

    entries: int
    share: float
    """Of all the model's weights."""
    file: str
    base: str | None
    digest: str
    made: dict[str, Any]
    frozen: str
    """What training did to the entries."""
    coverage: dict[str, dict[str, float]]
    """Kind of parameter in the decoder blocks → layer → share of it that is in the region."""
    elsewhere: dict[str, float]
    """Parameter outside the blocks → share of it that is in the region."""


@dataclass(frozen=True)
class Rehearsed:
    """What rehearsal told of the base's own words, at one time in training."""

    step: int
    """Optimizer steps done."""
    kl: float
    """Mean KL(base ‖ model) of the places since the time before, nats per token."""
    places: int


@dataclass(frozen=True)
class Run:
    """A run, or a model beside its base, with what is known of it."""

    name: str
    history: History
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Label → plain value, such as ``optimization.seed`` → 0."""
    region: RegionFacts | None = None
    texts: list[TextFacts] = field(default_factory=list)
    """What was read of each language."""
    brake: Brake | None = None
    average: Forgetting | None = None
    """That of the average of the weights, where that was exported."""
    benchmarks: BenchmarkDrops | None = None
    generation: Generation | None = None
    """What model and base put after prompts, where that was asked for."""
    rehearsed: list[Rehearsed] = field(default_factory=list)
    """KL to the base on its own words, in the course of training."""
    watch: Mapping[str, Any] = field(default_factory=dict)
    """How it was evaluated: what a history's file holds besides the history."""

    @property
    def evaluations(self) -> list[Evaluation]:
        return self.history.evaluations

    @property
    def model(self) -> Evaluation:
        """The evaluation of the model that the run left: the brake's choice, else the last one."""
        return self.history.last if self.brake is None else self.brake.model(self.evaluations)

    def limit(self, name: str, measure: Measure) -> float | None:
        """The brake's limit for a language, ``mean`` or ``worst``; None without one in
        ``measure``."""
        if self.brake is None or self.brake.measure != measure:
            return None
        return self.brake.limits.get(name)

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "name": self.name,
            "history": {**self.history.to_dict(), **self.watch},
            "settings": dict(self.settings),
            "region": None if self.region is None else asdict(self.region),
            "texts": [asdict(facts) for facts in self.texts] or None,
            "brake": None if self.brake is None else self.brake.to_dict(self.evaluations),
            "average": None if self.average is None else self.average.to_dict(),
            "benchmarks": None if self.benchmarks is None else self.benchmarks.to_dict(),
            "generation": None if self.generation is None else self.generation.to_dict(),
            "rehearsed": [asdict(point) for point in self.rehearsed] or None,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Run":
        """The inverse of ``to_dict``; what is missing but name and history is not known.

        ``KeyError``, ``TypeError``, ``AttributeError`` or ``ValueError`` where it cannot be read.
        """
        history = History.from_dict(data["history"])
        _check_languages(history)
        region, average = data.get("region"), data.get("average")
        benchmarks, generation = data.get("benchmarks"), data.get("generation")
        return cls(
            name=data["name"],
            history=history,
            settings=data.get("settings") or {},
            region=RegionFacts(**region) if region else None,
            texts=[TextFacts(**facts) for facts in data.get("texts") or ()],
            brake=_brake(data["brake"]) if data.get("brake") else None,
            average=Forgetting.from_dict(average) if average else None,
            benchmarks=BenchmarkDrops.from_dict(benchmarks) if benchmarks else None,
            generation=Generation.from_dict(generation) if generation else None,
            rehearsed=[Rehearsed(**point) for point in data.get("rehearsed") or ()],
            watch={k: v for k, v in data["history"].items() if k not in ("target", "evaluations")},
        )


def _brake(data: Mapping[str, Any]) -> Brake:
    """The brake of its settings alone: what they led to follows from the evaluations."""
    return Brake(**{field.name: data[field.name] for field in fields(Brake) if field.name in data})


def shared_measure(runs: Sequence[Run]) -> Measure:
    """The measure of the runs' brakes; nats per byte where there is none, or where they differ.

    Nats per byte also where the brake compares perplexities and some language has no ratio.
    """
    measures = {run.brake.measure for run in runs if run.brake is not None}
    if len(measures) != 1:
        return "nats_per_byte"
    (measure,) = measures
    forgettings = [evaluation.forgetting for run in runs for evaluation in run.evaluations]
    languages = [
        language for forgetting in forgettings for language in forgetting.languages.values()
    ]
    if measure == "perplexity" and any(change.perplexity_ratio is None for change in languages):
        return "nats_per_byte"
    return measure


def have_courses(runs: Sequence[Run]) -> bool:
    """Whether a run was evaluated on its way, or braked: not just one model beside its base."""
    return any(len(run.evaluations) > 2 or run.brake is not None for run in runs)


def read_runs(path: Path, name: str) -> list[Run]:
    """The runs in a folder of ``train``, ``forgetting`` or ``quickstart``, or in a history's file.

    A single run is called ``name``. Raises ``UserError`` where there is none, or one that cannot be
    read.
    """
    if path.is_file():
        return [_parsed({"name": name, "history": _json(path)}, path)]
    results_path = path / "results.json"
    results = _json(results_path) if results_path.is_file() else {}
    held = results.get("runs")
    if isinstance(held, list):  # forgetting, or an earlier report
        if not held:
            raise UserError(f"{results_path} holds no run; give another")
        runs = [_parsed(data, results_path) for data in held]
        return [_parsed({**held[0], "name": name}, results_path)] if len(runs) == 1 else runs
    if isinstance(held, dict):  # quickstart
        settings = flat(_recipe(path))
        return [
            _parsed({"name": called, "history": history, "settings": settings}, results_path)
            for called, history in held.items()
        ]
    if (path / FORGETTING).is_file():
        known = {key: results.get(key) for key in ("region", "texts", "brake")}
        known["rehearsed"] = (results.get("rehearsal") or {}).get("history")
        average, settings = results.get("forgetting_of_average"), flat(_recipe(path))
        data = {"name": name, "history": _json(path / FORGETTING), "settings": settings}
        return [_parsed({**data, **known, "average": average}, path / FORGETTING)]
    raise UserError(
        f"expected a folder of train, forgetting or quickstart, or a {FORGETTING}, at {path}, and "
        f"there is {'no evaluation in it' if path.is_dir() else 'nothing'}; give a run whose watch "
        "was on"
    )


def _parsed(data: Mapping[str, Any], path: Path) -> Run:
    with reading("the evaluations of a run in", path, _REMEDY):
        try:
            run = Run.from_dict(data)
        except (UserError, CheckError) as error:  # which name no file
            raise ValueError(str(error)) from error
        require_types(run, Run, "the run")
    return run


_REMEDY = "give a file as this version's ForgettingTracker or train writes it"


def _check_languages(history: History) -> None:
    """``ValueError`` unless every evaluation is of the same languages."""
    languages = history.base.figures.keys()
    for evaluation in history.evaluations:
        if (
            evaluation.figures.keys() != languages
            or evaluation.forgetting.languages.keys() != languages - {history.target}
            or evaluation.forgetting.worst[0] not in languages
        ):
            raise ValueError(
                f"step {evaluation.step} is not of the languages of the first evaluation"
            )


def _json(path: Path) -> dict[str, Any]:
    data = read_json(path, "the results of a run in", _REMEDY)
    if not isinstance(data, dict):
        raise UserError(f"expected a mapping in {path}, got {type(data).__name__}; give a run")
    return data


def _recipe(folder: Path) -> Mapping[str, Any]:
    path = folder / "recipe.yaml"
    if not path.is_file():
        return {}
    with reading("the recipe of a run,", path, "give the folder of another run"):
        recipe = yaml12.load(path.read_text(encoding="utf-8"))
        if not isinstance(recipe, dict):
            raise ValueError(f"expected a mapping, got {type(recipe).__name__}")
    return recipe
