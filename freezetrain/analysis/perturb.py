"""What is changed alone: single weights, dimensions, and random ones to compare them with."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel

from freezetrain.analysis.ablate import NOTHING
from freezetrain.analysis.alone import LanguageFigures, each_alone, rises
from freezetrain.analysis.recipe import PerturbRecipe
from freezetrain.evaluation import Document
from freezetrain.evaluation.figures import finite_or_none
from freezetrain.measuring.held_out import held_out_documents
from freezetrain.models import load_model, load_tokenizer, on_gpu
from freezetrain.recipe.sources import EvaluationTexts
from freezetrain.regions import Region, perturb
from freezetrain.regions.entries import draw_indices
from freezetrain.regions.parameters import all_parameters
from freezetrain.regions.residual_stream import hidden_size, weights_of_dimension
from freezetrain.run_folder import Outcome
from freezetrain.scoring import Scores
from freezetrain.scoring.scores import language_scores
from freezetrain.scoring.weights import Weight, region_of, top_weights


@dataclass(frozen=True)
class Target:
    """What is changed alone: a weight, or the weights of a dimension."""

    what: str
    region: Region
    weight: Weight | None = None
    score: float | None = None
    dimension: int | None = None
    parameter: str | None = None  # of a dimension; None: all of the decoder blocks


def weight_targets(
    model: nn.Module, weights: Sequence[tuple[Weight, float | None]]
) -> list[Target]:
    """Weights with their scores, where they have one; each once, with the first score told."""
    scores: dict[Weight, float | None] = {}
    for weight, score in weights:
        if scores.get(weight) is None:
            scores[weight] = score
    return [
        Target(str(weight), region_of(model, [weight]), weight=weight, score=score)
        for weight, score in scores.items()
    ]


def dimension_targets(
    model: nn.Module, dimensions: Sequence[int], patterns: Sequence[str]
) -> list[Target]:
    """All weights of each dimension together or, given patterns, those of each parameter alone."""
    found = []
    for dimension in dimensions:
        region = weights_of_dimension(model, dimension, patterns or None)
        what = f"dimension {dimension} of"
        if not patterns:
            found.append(Target(f"{what} all decoder blocks", region, dimension=dimension))
        for name, entries in region.items() if patterns else []:
            alone = Region({name: entries})
            found.append(Target(f"{what} {name}", alone, dimension=dimension, parameter=name))
    return found


def random_targets(model: nn.Module, targets: Sequence[Target], seed: int) -> list[Target]:
    """As many random weights of the same parameters, and random dimensions, none of ``targets``.

    Fewer where a parameter, or the model, has no more. The same on every machine.
    """
    weights: dict[str, list[int]] = defaultdict(list)
    dimensions: dict[str | None, list[int]] = defaultdict(list)
    for target in targets:
        if target.weight is not None:
            (entries,) = target.region.values()
            weights[target.weight.name] += entries.indices().tolist()
        elif target.dimension is not None:
            dimensions[target.parameter].append(target.dimension)
    found = []
    parameters = all_parameters(model)
    for name, taken in weights.items():
        shape = parameters[name].shape
        drawn = [
            Weight(name, tuple(int(i) for i in torch.unravel_index(torch.tensor(place), shape)))
            for place in _others(shape.numel(), taken, seed, name)
        ]
        found += weight_targets(model, [(weight, None) for weight in drawn])
    for parameter, taken in dimensions.items():
        others = _others(hidden_size(model), taken, seed, parameter or "")
        found += dimension_targets(model, others, [] if parameter is None else [parameter])
    return found


def _others(total: int, taken: Sequence[int], seed: int, name: str) -> list[int]:
    """As many of the places below ``total`` as are taken, at random among the rest."""
    rest = total - len(taken)
    places = draw_indices(rest, min(rest, len(taken)), seed, name)
    for one in sorted(taken):
        places = places + (places >= one)
    return places.tolist()


Change = Callable[[PreTrainedModel, Region], AbstractContextManager[None]]


def damage(
    model: PreTrainedModel,
    documents: dict[str, list[Document]],
    evaluation: EvaluationTexts,
    targets: Sequence[Target],
    change: Change,
    before: LanguageFigures,
    what: str,
) -> list[dict[str, Any]]:
    """What changing each of ``targets`` alone does, ready for JSON, largest damage first.

    ``value`` is that of a single weight, before; ``rise`` that of the NLL in nats per byte.
    """
    regions = [(target.what, target.region) for target in targets]
    found = each_alone(
        model, documents, evaluation, regions, number=len(regions), what=what, change=change
    )
    rows = []
    for target in targets:
        figures, weight = found[target.what], target.weight
        rise = rises(before, figures)
        rows.append(
            {
                "what": target.what,
                "name": target.parameter if weight is None else weight.name,
                "index": None if weight is None else list(weight.index),
                "dimension": target.dimension,
                "entries": target.region.count,
                "value": _value(model, target.region),
                "score": target.score,
                "mean_rise": fmean(rise.values()),
                "rise": rise,
                "perplexity": _perplexities(figures),
            }
        )
    return sorted(rows, key=lambda row: -row["mean_rise"])


def _value(model: PreTrainedModel, region: Region) -> float | None:
    """The only weight of the region; None where there are more."""
    if region.count > 1:
        return None
    ((name, entries),) = region.items()
    return entries.read(all_parameters(model)[name]).item()


def _perplexities(figures: LanguageFigures) -> dict[str, float | None]:
    return {language: finite_or_none(one.perplexity) for language, one in figures.items()}


def perturbations(
    model: PreTrainedModel,
    documents: dict[str, list[Document]],
    evaluation: EvaluationTexts,
    targets: Sequence[Target],
    recipe: PerturbRecipe,
    before: LanguageFigures | None = None,
) -> dict[str, Any]:
    """Results of the verb; ``before`` is what the model gives as it is. None: it is evaluated."""
    if before is None:
        nothing = [(NOTHING, Region({}))]
        before = each_alone(
            model, documents, evaluation, nothing, number=1, what="nothing changed"
        )[NOTHING]

    def ranked(some: Sequence[Target], what: str) -> list[dict[str, Any]]:
        if not some:
            return []
        return damage(model, documents, evaluation, some, _change(recipe), before, what)

    controls = random_targets(model, targets, recipe.seed) if recipe.random else []
    return {
        "change": recipe.change,
        "by": recipe.by if recipe.change == "scale" else None,
        "before": _perplexities(before),
        "weights": ranked(targets, f"{recipe.change} each weight"),
        "random": ranked(controls, f"{recipe.change} random ones"),
    }


def _change(recipe: PerturbRecipe) -> Change:
    if recipe.change == "zero":
        return lambda model, region: perturb(model, region, value=0.0)
    if recipe.change == "scale":
        return lambda model, region: perturb(model, region, scale=recipe.by)
    return lambda model, region: perturb(model, region, reinitialize=recipe.seed)


def as_table(results: Mapping[str, Any]) -> Table:
    """What is changed, largest damage first, with the random ones below."""
    way = results["change"] if results["by"] is None else f"times {results['by']:g}"
    table = Table(title=f"each changed alone: {way}", title_justify="left")
    for heading, justify in (
        ("what", "left"),
        ("value", "right"),
        ("score", "right"),
        ("mean rise,\nnats/byte", "right"),
        ("worst language", "left"),
    ):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for rows in (results["weights"], results["random"]):
        for row in rows:
            worst = max(row["rise"], key=lambda language: row["rise"][language])
            numbers = ("-" if row[n] is None else f"{row[n]:.4g}" for n in ("value", "score"))
            table.add_row(
                escape(row["what"]),
                *numbers,
                f"{row['mean_rise']:+.5f}",
                f"{escape(worst)} {row['rise'][worst]:+.5f}",
            )
        table.add_section()
    table.caption = "below: at random" if results["random"] else None
    return table


def run(recipe: PerturbRecipe, folder: Path) -> Outcome:
    model, tokenizer = on_gpu(load_model(recipe.model)), load_tokenizer(recipe.model)
    weights: list[tuple[Weight, float | None]] = []
    if recipe.scores is not None:
        total = Scores.sum(list(language_scores(recipe.scores, recipe.languages).values()))
        Region({}, total.base).check_base(model)
        weights += top_weights(total, recipe.count, norms=recipe.norms)
    weights += [(Weight(one.name, tuple(one.index)), None) for one in recipe.weights]
    targets = [
        *weight_targets(model, weights),
        *dimension_targets(model, recipe.dimensions, recipe.parameters),
    ]
    documents = held_out_documents(recipe.evaluation, tokenizer)
    results = perturbations(model, documents, recipe.evaluation, targets, recipe)
    return Outcome(results, [as_table(results)])
