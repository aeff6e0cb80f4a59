"""`freezetrain perturb`: single weights or dimensions changed, each alone, beside random ones."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import nn
from transformers import PreTrainedModel

from freezetrain.analysis.effects import (
    Change,
    LanguageFigures,
    Rises,
    each_alone,
    rises,
    unchanged,
)
from freezetrain.analysis.recipe import PerturbRecipe
from freezetrain.errors import UserError
from freezetrain.evaluation import Document
from freezetrain.evaluation.figures import finite_or_none
from freezetrain.formats import language_and_code, perplexity, signed
from freezetrain.measuring.held_out import held_out_documents, remarks
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
from freezetrain.tables import Column, Table
from freezetrain.typed_json import to_json


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
    """Weights with their scores, where they have one; each once, with the first score given."""
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
    targets = []
    for dimension in dimensions:
        region = weights_of_dimension(model, dimension, patterns or None)
        what = f"dimension {dimension} of"
        if not patterns:
            targets.append(Target(f"{what} all decoder blocks", region, dimension=dimension))
            continue
        for name, entries in region.items():
            alone = Region({name: entries})
            targets.append(Target(f"{what} {name}", alone, dimension=dimension, parameter=name))
    return targets


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
    drawn = []
    parameters = all_parameters(model)
    for name, taken in weights.items():
        shape = parameters[name].shape
        for place in _others(shape.numel(), taken, seed, name):
            index = torch.unravel_index(torch.tensor(place), shape)
            drawn += weight_targets(model, [(Weight(name, tuple(map(int, index))), None)])
    for parameter, taken in dimensions.items():
        others = _others(hidden_size(model), taken, seed, parameter or "")
        drawn += dimension_targets(model, others, [] if parameter is None else [parameter])
    return drawn


def _others(total: int, taken: Sequence[int], seed: int, name: str) -> list[int]:
    """As many of the places below ``total`` as are taken, at random among the rest."""
    rest = total - len(taken)
    places = draw_indices(rest, min(rest, len(taken)), seed, name)
    for place in sorted(taken):
        places = places + (places >= place)
    return places.tolist()


@dataclass(frozen=True)
class Damage:
    """What changing one target alone does."""

    what: str
    name: str | None
    """Parameter; None for a dimension of all decoder blocks."""
    index: list[int] | None
    """Of a single weight."""
    dimension: int | None
    entries: int
    value: float | None
    """Of a single weight, before it was changed."""
    score: float | None
    mean_rise: float
    """Of the NLL, nats per byte, mean over languages."""
    rise: Rises
    perplexity: dict[str, float | None]
    """None past the range of a float."""

    @property
    def worst(self) -> str:
        """The language that loses most."""
        return max(self.rise, key=self.rise.__getitem__)


@dataclass(frozen=True)
class Perturbations:
    """Results of the verb: damage of each target and of random ones, largest first."""

    change: str
    """zero, scale or reinitialize"""
    by: float | None
    """Factor, where entries are scaled."""
    before: dict[str, float | None]
    """Perplexity of each language as the model is; None past the range of a float."""
    weights: list[Damage]
    random: list[Damage]

    @property
    def single(self) -> bool:
        """Whether single weights were changed, and not several at once."""
        return all(damage.entries == 1 for damage in self.weights)

    @property
    def title(self) -> str:
        """``Single weights set to zero``"""
        done = f"multiplied by {self.by:g}" if self.by is not None else _DONE[self.change]
        if not self.single:
            return f"Whole dimensions {done}"
        recurring = any(damage.dimension is not None for damage in self.weights)
        return f"Single weights{' of recurring dimensions' if recurring else ''} {done}"


_DONE = {"zero": "set to zero", "reinitialize": "drawn anew"}


def perturbations(
    model: PreTrainedModel,
    documents: dict[str, list[Document]],
    evaluation: EvaluationTexts,
    targets: Sequence[Target],
    recipe: PerturbRecipe,
    before: LanguageFigures | None = None,
) -> Perturbations:
    """Change each of ``targets``, and as many random ones, alone, as ``recipe`` says.

    ``before``: what the model gives as it is, on the same documents. None: it is evaluated.
    """
    figures_before = before or unchanged(model, documents, evaluation)

    def ranked(targets: Sequence[Target], what: str) -> list[Damage]:
        if not targets:
            return []
        figures = each_alone(
            model,
            documents,
            evaluation,
            [(target.what, target.region) for target in targets],
            number=len(targets),
            what=f"{recipe.change} {what}",
            change=_change(recipe),
        )
        damages = [_damage(model, t, figures_before, figures[t.what]) for t in targets]
        return sorted(damages, key=lambda damage: -damage.mean_rise)

    controls = random_targets(model, targets, recipe.seed) if recipe.random else []
    return Perturbations(
        change=recipe.change,
        by=recipe.by if recipe.change == "scale" else None,
        before=_perplexities(figures_before),
        weights=ranked(targets, "each weight"),
        random=ranked(controls, "random ones"),
    )


def _damage(
    model: PreTrainedModel, target: Target, before: LanguageFigures, after: LanguageFigures
) -> Damage:
    weight, rise = target.weight, rises(before, after)
    return Damage(
        what=target.what,
        name=target.parameter if weight is None else weight.name,
        index=None if weight is None else list(weight.index),
        dimension=target.dimension,
        entries=target.region.count,
        value=_single_value(model, target.region),
        score=target.score,
        mean_rise=fmean(rise.values()),
        rise=rise,
        perplexity=_perplexities(after),
    )


def _single_value(model: PreTrainedModel, region: Region) -> float | None:
    """The only weight of the region; None where there are more."""
    if region.count > 1:
        return None
    ((name, entries),) = region.items()
    return entries.read(all_parameters(model)[name]).item()


def _perplexities(figures: LanguageFigures) -> dict[str, float | None]:
    return {language: finite_or_none(result.perplexity) for language, result in figures.items()}


def _change(recipe: PerturbRecipe) -> Change:
    if recipe.change == "zero":
        return lambda model, region: perturb(model, region, value=0.0)
    if recipe.change == "scale":
        return lambda model, region: perturb(model, region, scale=recipe.by)
    return lambda model, region: perturb(model, region, reinitialize=recipe.seed)


def damage_table(changed: Perturbations) -> Table:
    """Everything that was changed, largest damage first, with the random ones among them."""

    def perplexities(damage: Damage) -> str:
        before, after = changed.before[damage.worst], damage.perplexity[damage.worst]
        return f"{perplexity(before)} → {perplexity(after)}"

    drawn = {id(damage) for damage in changed.random}
    columns = [
        Column("weight", "what", text=True),
        Column("", lambda damage: "random" if id(damage) in drawn else "chosen", text=True),
        Column("value", "value", _four_digits),
        Column("score", "score", _four_digits),
        Column("mean rise", "mean_rise", lambda rise: signed(rise, 5)),
        Column("worst language", "worst", language_and_code, text=True),
        Column("its rise", lambda damage: damage.rise[damage.worst], lambda r: signed(r, 5)),
        Column("its perplexity", perplexities, text=True),
    ]
    rows = sorted([*changed.weights, *changed.random], key=lambda damage: -damage.mean_rise)
    title = f"{changed.title}, each alone; rise of the loss in nats per byte"
    return Table(title, columns, rows, sortable=True)


def _four_digits(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def run(recipe: PerturbRecipe, folder: Path) -> Outcome:
    model, tokenizer = on_gpu(load_model(recipe.model)), load_tokenizer(recipe.model)
    weights: list[tuple[Weight, float | None]] = []
    if recipe.scores is not None:
        total = Scores.sum(list(language_scores(recipe.scores, recipe.languages).values()))
        Region({}, total.base).check_base(model)
        there = sum(total[name].numel() for name in total.selectable(recipe.norms))
        if recipe.count > there:
            raise UserError(f"count is {recipe.count} and {there} weights are scored; lower it")
        weights += top_weights(total, recipe.count, norms=recipe.norms)
    weights += [(Weight(weight.name, tuple(weight.index)), None) for weight in recipe.weights]
    targets = [
        *weight_targets(model, weights),
        *dimension_targets(model, recipe.dimensions, recipe.parameters),
    ]
    documents = held_out_documents(recipe.evaluation, tokenizer)
    changed = perturbations(model, documents, recipe.evaluation, targets, recipe)
    return Outcome(
        to_json(changed), [damage_table(changed), *remarks(recipe.evaluation, tokenizer, documents)]
    )
