"""`freezetrain ablate`: every language with each of several regions zeroed, one at a time."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from freezetrain.analysis.effects import (
    NOTHING,
    Effect,
    LanguageFigures,
    each_alone,
    effects_table,
    mean_effect,
)
from freezetrain.analysis.recipe import AblateRecipe
from freezetrain.errors import UserError
from freezetrain.escaping import shortened
from freezetrain.evaluation import Document
from freezetrain.formats import exact_percent
from freezetrain.generation.greedy import continuations, require_continuable
from freezetrain.measuring.held_out import held_out_documents, remarks
from freezetrain.models import load_model, load_tokenizer, on_gpu
from freezetrain.regions import Region
from freezetrain.run_folder import Outcome
from freezetrain.scoring import Scores, select
from freezetrain.scoring.scores import language_scores
from freezetrain.tables import Column, Table
from freezetrain.typed_json import to_json

Kind = Literal["top", "bottom", "random", "file"]


@dataclass(frozen=True)
class Removal:
    """A region that is to be zeroed."""

    kind: Kind
    ratio: float | None = None
    """Share of each tensor's entries, where it is selected from scores."""
    seed: int | None = None
    """Of a random region."""
    like: str | None = None
    """The region that a random one equals in size; named only if that is zeroed too."""


@dataclass(frozen=True)
class ZeroedRegion(Removal):
    """A region that was zeroed."""

    entries: int = 0
    share: float = 0.0
    """Of all weights."""


@dataclass(frozen=True, kw_only=True)
class RemovalEffect(Effect):
    """Effect of zeroing a region, or mean effect of random regions that differ in their seed."""

    kind: Kind
    ratio: float | None
    like: str | None
    regions: list[str]

    @property
    def label(self) -> str:
        """Among those of one ratio: ``top``, ``random``, the name of a file."""
        if self.kind == "file":
            return self.regions[0]
        return self.kind if self.ratio is not None else f"random like {self.like}"

    @property
    def removed(self) -> str:
        """What is zeroed, for a title: ``1%``, or the name of a file."""
        if self.ratio is not None:
            return f"{exact_percent(self.ratio)} of each matrix"
        return self.like or self.regions[0]


@dataclass(frozen=True)
class Continuations:
    """What the model puts after a prompt, by the region that is zeroed."""

    prompt: str
    texts: dict[str, str]


@dataclass(frozen=True)
class Ablation:
    """Results of the verb. Names of regions are keys; NOTHING is the model as it is."""

    regions: dict[str, ZeroedRegion]
    figures: dict[str, LanguageFigures]
    summary: list[RemovalEffect]
    texts: list[Continuations]


def run(recipe: AblateRecipe, folder: Path) -> Outcome:
    plan_removals(recipe)  # refuses what the recipe has wrong before a model is loaded
    model, tokenizer = on_gpu(load_model(recipe.model)), load_tokenizer(recipe.model)
    documents = held_out_documents(recipe.evaluation, tokenizer)
    ablation = ablate_regions(recipe, model, tokenizer, documents)
    return Outcome(
        to_json(ablation),
        [
            *removal_tables(ablation),
            *text_tables(ablation),
            *remarks(recipe.evaluation, tokenizer, documents),
        ],
    )


def ablate_regions(
    recipe: AblateRecipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: dict[str, list[Document]],
) -> Ablation:
    """Zero each region that the recipe names, evaluate ``documents``, continue the prompts."""
    plan = plan_removals(recipe)
    require_continuable(model, tokenizer, recipe.prompts, recipe.new_tokens)
    make = _region_maker(recipe, model)
    zeroed: dict[str, ZeroedRegion] = {}
    texts: dict[str, dict[str, str]] = {prompt: {} for prompt in recipe.prompts}

    def regions() -> Iterator[tuple[str, Region]]:
        yield NOTHING, Region({})
        for name, removal in plan.items():
            region = make(removal, name)
            share = region.coverage(model).model
            zeroed[name] = ZeroedRegion(**vars(removal), entries=region.count, share=share)
            yield name, region

    def continue_prompts(name: str) -> None:
        # Without a cache: an edited model need not give finite numbers, and nothing is compared.
        said = continuations(model, tokenizer, [*texts], recipe.new_tokens, cache=False)
        for by_name, text in zip(texts.values(), said, strict=True):
            by_name[name] = text

    figures = each_alone(
        model, documents, recipe.evaluation, regions(), number=1 + len(plan),
        what="zero each region", during=continue_prompts,
    )  # fmt: skip
    summary = [
        RemovalEffect(
            kind=removal.kind,
            ratio=removal.ratio,
            like=removal.like,
            regions=names,
            **vars(mean_effect(figures, names)),
        )
        for removal, names in _groups(plan)
    ]
    continued = [Continuations(prompt, by_name) for prompt, by_name in texts.items()]
    return Ablation(zeroed, figures, summary, continued)


def plan_removals(recipe: AblateRecipe) -> dict[str, Removal]:
    """Name → what is zeroed, in order. UserError if two would have one name."""
    plan: list[tuple[str, Removal]] = []
    seeds = recipe.random_seeds if "random" in recipe.which else []
    for path in recipe.regions:
        name = _region_name(path)
        plan.append((name, Removal("file")))
        for seed in seeds:
            plan.append((f"random like {name}, seed {seed}", Removal("random", None, seed, name)))
    for ratio in recipe.ratios if recipe.scores is not None else []:
        share = exact_percent(ratio)
        top = f"top {share}" if "top" in recipe.which else None
        if top:
            plan.append((top, Removal("top", ratio)))
        if "bottom" in recipe.which:
            plan.append((f"bottom {share}", Removal("bottom", ratio)))
        for seed in seeds:
            plan.append((f"random {share}, seed {seed}", Removal("random", ratio, seed, top)))
    names = [NOTHING, *(name for name, _ in plan)]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two regions are called {name!r}; rename one of the files")
    return dict(plan)


def _region_name(path: str) -> str:
    return Path(path).name.removesuffix(".safetensors")


def _region_maker(recipe: AblateRecipe, model: PreTrainedModel) -> Callable[[Removal, str], Region]:
    """A function that makes a planned region, by its name; refuses files that do not fit now."""
    files = {_region_name(path): Region.load(path, model=model) for path in recipe.regions}
    total = None
    if recipe.scores is not None:
        total = Scores.sum(list(language_scores(recipe.scores, recipe.languages).values()))
        Region({}, total.base).check_base(model)

    @lru_cache(maxsize=1)  # the random regions of a ratio follow each other
    def top(ratio: float) -> Region:
        assert total is not None
        return select(total, ratio, norms=recipe.norms)

    def make(removal: Removal, name: str) -> Region:
        if removal.kind == "file":
            return files[name]
        if removal.kind == "random":
            assert removal.seed is not None
            like = top(removal.ratio) if removal.ratio is not None else files[str(removal.like)]
            return like.random_like(removal.seed)
        assert removal.ratio is not None
        if removal.kind == "top":
            return top(removal.ratio)
        assert total is not None
        return select(total, removal.ratio, which="bottom", norms=recipe.norms)

    return make


def _groups(plan: Mapping[str, Removal]) -> list[tuple[Removal, list[str]]]:
    """Random regions that differ in their seed alone are one group, every other region its own."""
    groups: dict[Any, tuple[Removal, list[str]]] = {}
    for name, removal in plan.items():
        random = removal.kind == "random"
        key = (removal.kind, removal.ratio, removal.like) if random else name
        groups.setdefault(key, (removal, []))[1].append(name)
    return list(groups.values())


def removal_tables(ablation: Ablation) -> list[Table]:
    """A table for each ratio and each file, with its random regions beside it."""
    by_title: dict[str, dict[str, RemovalEffect]] = {}
    for effect in ablation.summary:
        by_title.setdefault(effect.removed, {})[effect.label] = effect
    return [
        effects_table(
            f"{removed} set to zero; rise of the loss in nats per byte",
            ablation.figures[NOTHING],
            effects,
        )
        for removed, effects in by_title.items()
    ]


_LONGEST = 240  # letters of a text in the terminal; results.json has all of it


def text_tables(ablation: Ablation) -> list[Table]:
    """A table for each prompt, for the terminal: what the model writes after it, by what is zero.

    A line break in a text is spelt ``\\n`` there.
    """
    columns = [
        Column("set to zero", 0, text=True),
        Column("the model goes on", 1, lambda text: shortened(text, _LONGEST) or "–", text=True),
    ]
    return [
        Table(f"after the prompt “{shortened(each.prompt, 60)}”", columns, list(each.texts.items()))
        for each in ablation.texts
    ]
