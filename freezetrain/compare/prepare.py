"""What a comparison makes before its runs: the base's figures, scores, regions."""

from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from freezetrain.analysis.score import score_languages
from freezetrain.analysis.select import make_region, monolingual_regions
from freezetrain.compare.recipe import SUFFIX, CompareRecipe
from freezetrain.compare.results import ModelFacts
from freezetrain.data.texts import languages_in
from freezetrain.errors import UserError, near_misses
from freezetrain.evaluation import Document, DocumentSums
from freezetrain.files import write_json
from freezetrain.measuring.held_out import evaluate_with_bar, held_out_documents, window_length
from freezetrain.models import check_fit, load_model, load_tokenizer, meta_model, on_gpu
from freezetrain.progress import Stages
from freezetrain.regions import Expression, Region, decoder_blocks, layers_region
from freezetrain.sampling import rehearse
from freezetrain.scoring.scores import language_scores
from freezetrain.training.plan import penalty_of, pull_of, shape_and_region, shape_of
from freezetrain.user_files import read_json, reading

_BASE = "base.json"


@dataclass(frozen=True)
class Prepared:
    """What all runs share."""

    folder: Path
    model: ModelFacts
    base: dict[str, DocumentSums]  # language → what the base gives on its documents
    frozen: dict[str, float] = field(default_factory=dict)  # variant → share of all weights


def prepare(recipe: CompareRecipe, folder: Path) -> Prepared:
    """Make what is not in ``folder`` yet. UserError for what can be refused, before any run."""
    tokenizer = load_tokenizer(recipe.train.model)
    shape = meta_model(recipe.train.model, random_weights=recipe.train.from_scratch)
    check_fit(shape, tokenizer, recipe.train.optimization.sequence_length)
    documents = held_out_documents(recipe.train.watch, tokenizer)
    if recipe.target not in documents or len(documents) < 2:
        raise UserError(
            f"expected held-out documents of the target {recipe.target} and of one language more "
            f"in train.watch.texts, got those of {', '.join(documents)}; add them"
        )
    window_length(recipe.train.watch, shape)
    if not (folder / _BASE).is_file():  # else an earlier start has looked at all that
        _check_parts(recipe, shape)
    scores = recipe.scores or str(folder / "scores")
    _check_given(recipe, folder, shape)
    stages = Stages()
    base = _base(recipe, documents, folder / _BASE)
    if recipe.needs_scores and recipe.scores is None:
        held_out = [name for name in documents if name != recipe.target]
        with stages("scores"):
            score_languages(recipe.scoring_recipe(held_out), folder / "scores")
    for name in recipe.rehearsals:
        with stages(f"rehearsal {name}"):
            _rehearse(recipe, name, folder / "rehearsals")
    with stages("regions"):
        frozen = _regions(recipe, folder, scores, shape)
    weights = sum(parameter.numel() for parameter in shape.parameters())
    name = recipe.train.model.path.rstrip("/").rpartition("/")[2]
    model = ModelFacts(name, weights, len(decoder_blocks(shape)))
    shares = {name: count / weights for name, count in frozen.items()}
    return Prepared(folder, model, base, shares)


def _check_parts(recipe: CompareRecipe, shape: PreTrainedModel) -> None:
    """UserError, before the base is evaluated, for what variants and regions will be refused for.

    As far as that is known without regions and scores that are still to be made.
    """
    for name in recipe.regions:
        try:
            _check_region(recipe, name, shape)
        except UserError as error:
            raise UserError(f"regions.{name}: {error}") from error
    for name in recipe.variants:
        try:
            training = recipe.training(name, recipe.rates_of(name)[0], recipe.seeds_of(name)[0])
            adapted = shape_of(training)
            if recipe.scores is not None:
                penalty_of(training, adapted)
                if training.pull is not None:  # its regions are still to be made
                    pull = replace(training.pull, regions={})
                    pull_of(replace(training, pull=pull), adapted)
            texts = training.replay and training.replay.texts
            known = languages_in(texts) if texts else []
            for language in training.replay.languages if training.replay else ():
                if language not in known:
                    raise UserError(
                        f"replay has no texts of language {language!r}"
                        f"{near_misses(language, known)}; there are {' '.join(known)}"
                    )
        except UserError as error:
            raise UserError(f"variants.{name}: {error}") from error


def _check_region(recipe: CompareRecipe, name: str, shape: PreTrainedModel) -> None:
    fields = recipe.regions[name]
    if fields.get("kind") == "file":
        Region.load(fields["path"]).resolve(shape)
        return
    selection = recipe.selection(name)
    if selection.kind == "layers":
        layers_region(shape, selection.first, selection.last, norms=selection.norms)
    if recipe.scores is not None and recipe.is_scored(name):
        language_scores(str(selection.scores), selection.languages)


def check_variants(recipe: CompareRecipe, prepared: Prepared) -> None:
    """UserError, before any run, for what the training of a variant would be refused for."""
    for name in recipe.variants:
        rate, seed = recipe.rates_of(name)[0], recipe.seeds_of(name)[0]
        training = recipe.training(name, rate, seed, prepared.folder)
        try:
            shape, _ = shape_and_region(training)
            pull_of(training, shape)
            penalty_of(training, shape)
        except UserError as error:
            raise UserError(f"variants.{name}: {error}") from error


def _check_given(recipe: CompareRecipe, folder: Path, shape: PreTrainedModel) -> None:
    """UserError for regions and scores of the user's that cannot be read, or are of another model.

    Of regions that are still to be made: before the base is evaluated for them.
    """
    for name, fields in recipe.regions.items():
        if (folder / "regions" / f"{name}{SUFFIX}").exists():
            continue
        if fields.get("kind") == "file":
            Region.load(fields["path"]).resolve(shape)
        elif recipe.scores is not None and recipe.is_scored(name):
            language_scores(str(recipe.selection(name).scores))


def _base(
    recipe: CompareRecipe, documents: dict[str, list[Document]], path: Path
) -> dict[str, DocumentSums]:
    """What the base gives on each document, evaluated once for all runs."""
    if not path.is_file():
        model = on_gpu(load_model(recipe.train.model))
        evaluated = evaluate_with_bar(model, documents, recipe.train.watch, "evaluate the base")
        write_json(path, {name: sums.to_dict() for name, sums in evaluated.items()})
    what, remedy = "what the base gave in", "delete the file, the base is then evaluated anew"
    stored = read_json(path, what, remedy)
    with reading(what, path, remedy):
        return {name: DocumentSums.from_dict(sums) for name, sums in stored.items()}


def _rehearse(recipe: CompareRecipe, name: str, folder: Path) -> None:
    """Draw what is not in ``folder`` yet of the rehearsal ``name``."""
    fields, made_from = recipe.rehearsals[name], folder / f"{name}.json"
    if made_from.exists():
        _require_same(f"rehearsals.{name}", fields, made_from, folder / name)
    else:
        write_json(made_from, fields)
    (folder / name).mkdir(exist_ok=True)
    rehearse.run(recipe.rehearsal(name), folder / name)


def _require_same(where: str, fields: dict[str, Any], made_from: Path, made: Path) -> None:
    """UserError unless ``made`` came of ``fields``, as an earlier start wrote to ``made_from``."""
    earlier = read_json(made_from, f"how {where} was made,", f"delete {made}")
    if earlier != fields:
        raise UserError(
            f"{where} was made in another way in {made.parent}: as {earlier}; give the new one "
            "another name"
        )


def _regions(
    recipe: CompareRecipe, folder: Path, scores: str, shape: PreTrainedModel
) -> dict[str, int]:
    """Make all regions that are not in ``folder``; variant → how many entries it freezes.

    A region that is one of ``recipe.regions`` is that one's file; a combination has its own.
    """
    named, combined = folder / "regions", folder / "combined"
    named.mkdir(exist_ok=True)
    combined.mkdir(exist_ok=True)
    for name, fields in recipe.regions.items():
        file, made_from = named / f"{name}{SUFFIX}", named / f"{name}.json"
        if file.exists():
            _require_same(f"regions.{name}", fields, made_from, file)
        else:
            region = _region(recipe, name, named, scores)
            region.resolve(shape)
            write_json(made_from, fields)
            region.save(file)
    counts: dict[str, int] = {}
    for name, variant in recipe.variants.items():
        for text in recipe.expressions(name):
            file = folder / recipe.region_file(text)
            if not file.exists():
                parts = Expression(text)
                parts.region(lambda part: Region.load(named / f"{part}{SUFFIX}")).save(file)
            count = Region.load(file).count
            if not count:
                raise UserError(f"variants.{name}: the region {text} has no entry; choose another")
            if text == variant.region:
                counts[name] = count
    return counts


def _region(recipe: CompareRecipe, name: str, folder: Path, scores: str) -> Region:
    if recipe.regions[name].get("kind") == "file":
        return Region.load(recipe.regions[name]["path"])
    selection = recipe.selection(name, folder, scores)
    if selection.kind == "core" and not selection.languages:  # of those to keep
        scored = language_scores(str(selection.scores))
        kept = [language for language in scored if language != recipe.target]
        selection = replace(selection, languages=kept)
    if selection.kind != "monolingual":
        return make_region(selection)
    regions = [
        region
        for language, region in monolingual_regions(selection).items()
        if selection.language or language != recipe.target
    ]
    return reduce(or_, regions)
