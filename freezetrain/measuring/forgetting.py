"""`freezetrain forgetting`: what models lost against their base, and what they gained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from freezetrain.data.texts import files_not_read
from freezetrain.data.tokens import tokenizer_digest
from freezetrain.devices import require_engine, start_ranks
from freezetrain.errors import CheckError, UserError, near_misses
from freezetrain.evaluation import Document, History, forgetting_table
from freezetrain.evaluation.benchmarks import compare_scores, main_metrics
from freezetrain.evaluation.documents import digests
from freezetrain.evaluation.texts import text_facts, texts_table
from freezetrain.formats import shortest_endings
from freezetrain.measuring.generation import Probe
from freezetrain.measuring.harness import Harness
from freezetrain.measuring.held_out import evaluate_with_bar, held_out_documents, window_length
from freezetrain.measuring.kept import Ground, Kept, Measured, files_of
from freezetrain.measuring.recipe import ForgettingRecipe
from freezetrain.measuring.written import write_tables
from freezetrain.models import (
    check_fit,
    describe,
    load_model,
    load_tokenizer,
    meta_model,
    on_gpu,
)
from freezetrain.places import require_model
from freezetrain.ranks import (
    current_launch,
    from_all_ranks,
    from_first_rank,
    is_first_rank,
    on_first_rank,
    together,
)
from freezetrain.recipe.sources import ModelSource
from freezetrain.regions.base import fingerprint
from freezetrain.report.run import Run
from freezetrain.run_folder import Outcome
from freezetrain.stored_model import fingerprint_of_files


@dataclass(frozen=True)
class _Opened:
    """A model before its weights are loaded."""

    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    shape: PreTrainedModel
    """Without weights."""


@dataclass(frozen=True)
class _Plan:
    """What is known before a model is run: what was measured earlier, and what is to be."""

    base: str
    names: list[str]
    """Of the models, in their order."""
    kept: tuple[Ground, Measured] | None
    measured: dict[str, Measured]
    changed: list[str]
    """Models that were measured before, and have other files now."""
    failed: dict[str, str]
    opened: dict[str, _Opened]
    """The base, and the models that are to be measured."""
    max_length: int
    others: list[PreTrainedTokenizerBase]
    """The tokenizers of all models, where they differ."""
    documents: dict[str, list[Document]]
    """In tokens of the base."""
    harness: Harness | None
    probe: Probe | None

    @property
    def new(self) -> dict[str, _Opened]:
        return {name: model for name, model in self.opened.items() if name != self.base}

    @property
    def seen(self) -> tuple[object, ...]:
        """What all processes must have found."""
        return self.names, [*self.opened], self.max_length, digests(self.documents)


def run(recipe: ForgettingRecipe, folder: Path) -> Outcome:
    """Evaluate the base, then each model, one in memory at a time, on the same documents.

    Starts the processes that the engine wants: each holds the whole model and evaluates its share
    of the windows. Every one calls this, the first writes and has the outcome. A model that cannot
    be loaded, or whose losses are not finite, gets no figures: the outcome says why and has not
    passed, and the others go on. What was measured is kept in ``folder``, and a later start
    measures what is missing, on the same base, documents and windows. Leaves forgetting.csv,
    forgetting.md, report.html (where a model has figures), benchmarks.csv where there are tasks,
    and generation.csv where something is generated.

    Raises UserError for what can be refused before any model is run: also a base, documents or
    windows other than those that were measured. CheckError where the base's losses are not finite.
    """
    launch = current_launch()
    require_engine(recipe.engine, launch)
    kept = Kept(folder / "measured")
    # What can be refused is, before any model is run and any other process is started.
    plan = _plan(recipe, kept)
    own_ground = _ground(plan, folder) if launch.rank == 0 else None
    start_ranks(recipe.engine, launch)
    own_recipe, recipe = recipe, from_first_rank(recipe)
    with together():
        if recipe != own_recipe:  # the first process alone has the models of earlier commands
            plan = _plan(recipe, kept)
    ground = from_first_rank(own_ground)
    assert ground is not None
    _require_same_plan(plan)
    before = from_first_rank(None if plan.kept is None else plan.kept[1])
    if before is None:
        base = plan.opened[plan.base]
        try:
            before = _measured(recipe, plan.base, base, plan.documents, plan)
        except CheckError as error:
            raise CheckError(f"{plan.base}: {error}") from error
        main_metrics(before.scores, recipe.benchmarks.metrics)
        found = before
        on_first_rank(lambda: kept.keep_base(ground, found))
    measured, failed = plan.measured, plan.failed
    for name, model in plan.new.items():
        documents = _documents(recipe, model, plan.others)
        files = on_first_rank(partial(files_of, model.source))
        try:
            given = _measured(recipe, name, model, documents, plan)
        except (UserError, CheckError) as error:
            failed[name] = str(error)
            continue
        place = plan.names.index(name)
        on_first_rank(partial(kept.keep_model, place, model.source, ground, given, files))
        measured[name] = given
    outcome = Outcome({})  # of the first process alone, which owns the folder
    with together():
        if is_first_rank():
            outcome = _outcome(recipe, folder, plan, before)
    return outcome


def _ground(plan: _Plan, folder: Path) -> Ground:
    """What models are measured on, which must be what they were measured on before."""
    base = _fingerprint(plan.opened[plan.base])
    ground = Ground(base, digests(plan.documents), plan.max_length)
    if plan.kept is not None:
        plan.kept[0].require_same(ground, folder)
    return ground


def _plan(recipe: ForgettingRecipe, kept: Kept) -> _Plan:
    base, *names = _names([recipe.base, *recipe.models])
    sources = dict(zip(names, recipe.models, strict=True))
    known = kept.base()
    measured: dict[str, Measured] = {}
    changed = []
    for place, (name, source) in enumerate(sources.items()):
        if known is None:
            break
        if kept.changed(place, source):
            changed.append(name)
        elif (found := kept.model(place, source, known[0])) is not None:
            measured[name] = found
    missing = {name: sources[name] for name in names if name not in measured}
    new, failed = _opened(missing, first=known is None)
    opened = {base: _open(recipe.base), **new}
    max_length = _common_window(recipe, opened, None if known is None else known[0].max_length)
    harness = Harness(recipe.benchmarks) if recipe.benchmarks.tasks else None
    distinct = {tokenizer_digest(model.tokenizer): model.tokenizer for model in opened.values()}
    others = list(distinct.values()) if len(distinct) > 1 else []
    documents = _documents(recipe, opened[base], others)
    probe = None
    if recipe.generation.documents:
        probe = Probe(recipe.generation, documents, opened[base].tokenizer)
        for model in opened.values():
            probe.require(model.shape, model.tokenizer)
    return _Plan(
        base, names, known, measured, changed, failed, opened, max_length, others, documents,
        harness, probe,
    )  # fmt: skip


def _require_same_plan(plan: _Plan) -> None:
    """UserError where the processes find other models or texts, as on machines that share none."""
    found = from_all_ranks(plan.seen)
    others = [rank for rank, seen in enumerate(found) if seen != found[0]]
    if others:
        raise UserError(
            f"expected the same models, texts and folder on all ranks, and rank {others[0]} finds "
            "others than rank 0; put them where all machines see them"
        )


def _outcome(recipe: ForgettingRecipe, folder: Path, plan: _Plan, before: Measured) -> Outcome:
    """The results, the files for people, and what to show."""
    base, names, new, measured = plan.base, plan.names, plan.new, plan.measured
    sources = dict(zip(names, recipe.models, strict=True))
    not_read = files_not_read(recipe.evaluation.texts, recipe.evaluation.languages)
    tables: list[Any] = [
        f"{name}: its files have changed since it was measured" for name in plan.changed
    ]
    tables += [texts_table(before.texts, f"texts, in tokens of {base}", not_read)]
    watch = {"max_length": plan.max_length, "overlap": recipe.evaluation.overlap}
    runs = []
    for name in (name for name in names if name in measured):
        after = measured[name]
        if after.texts != before.texts and name in new:
            tables.append(texts_table(after.texts, f"texts, in tokens of {name}"))
        drops = None
        if plan.harness is not None:
            drops = compare_scores(before.scores, name, after.scores, recipe.benchmarks.metrics)
        generation = None
        if plan.probe is not None:
            generation = plan.probe.compare(before.generated, after.generated, recipe.target)
        history = History(recipe.target)
        history.add(0, before.sums)
        history.add(1, after.sums)
        runs.append(
            Run(
                name,
                history,
                _settings(recipe.base, sources[name]),
                texts=after.texts,
                benchmarks=drops,
                generation=generation,
                watch=watch,
            )
        )
        if name in new:
            figures = history.base.figures, history.last.figures
            change = history.last.forgetting
            tables.append(
                forgetting_table(*figures, recipe.target, result=change, title=name, flips=True)
            )
    failed = {name: plan.failed[name] for name in names if name in plan.failed}
    results = {
        "base": base,
        "files_not_read": not_read,
        "runs": [run.to_dict() for run in runs],
        "failed": failed,
    }
    return Outcome(results, [*tables, *write_tables(runs, failed, folder)], passed=not failed)


def _names(sources: Sequence[ModelSource]) -> list[str]:
    """What the models are called in tables; a revision is named too, as in ``model@main``."""
    paths = list(dict.fromkeys(source.path.rstrip("/") for source in sources))
    called = dict(zip(paths, shortest_endings(paths), strict=True))
    names = []
    for source in sources:
        name, revision = called[source.path.rstrip("/")], source.revision
        names.append(name if revision is None else f"{name}@{revision}")
        if names.count(names[-1]) > 1:
            raise UserError(
                f"expected each model once, got {names[-1]} twice; leave one out, or give another "
                "revision"
            )
    return names


def _open(source: ModelSource) -> _Opened:
    return _Opened(source, load_tokenizer(source), meta_model(source, quantized=True))


def _opened(
    sources: Mapping[str, ModelSource], first: bool
) -> tuple[dict[str, _Opened], dict[str, str]]:
    """What the files of each model say, and of those that cannot be loaded, why.

    Raises UserError on the ``first`` start where there is no model at all: a name to correct. Later
    it may be one that failed before, and is gone.
    """
    opened: dict[str, _Opened] = {}
    failed: dict[str, str] = {}
    if first:
        for source in sources.values():
            require_model(source)
    for name, source in sources.items():
        try:
            opened[name] = _open(source)
        except UserError as error:
            failed[name] = str(error)
    return opened, failed


def _common_window(
    recipe: ForgettingRecipe, models: Mapping[str, _Opened], kept: int | None
) -> int:
    """Tokens of context that all models have: with more, a model would seem to forget less.

    ``kept``: with which others were measured before. UserError for a model that has fewer.
    """
    lengths = {}
    for name, model in models.items():
        lengths[name] = window_length(recipe.evaluation, model.shape)
        check_fit(model.shape, model.tokenizer, lengths[name])
    shortest = min(lengths, key=lengths.__getitem__)
    if kept is not None and kept > lengths[shortest]:
        raise UserError(
            f"the models in the folder were measured in windows of {kept} tokens, and {shortest} "
            f"was built for {lengths[shortest]}; give --out a new folder, and all of them"
        )
    return lengths[shortest] if kept is None else kept


def _fingerprint(opened: _Opened) -> str:
    files = describe(opened.source, quantized=True).files
    found = None if files is None else fingerprint_of_files(opened.shape, files)
    return found or fingerprint(load_model(opened.source, quantized=True))


def _documents(
    recipe: ForgettingRecipe, opened: _Opened, others: Sequence[PreTrainedTokenizerBase]
) -> dict[str, list[Document]]:
    """``others``: the tokenizers of all models, where they differ."""
    documents = held_out_documents(recipe.evaluation, opened.tokenizer, others)
    if recipe.target is not None and recipe.target not in documents:
        raise UserError(
            f"the target {recipe.target!r} is not among the languages evaluated"
            f"{near_misses(recipe.target, documents)}; they are {' '.join(documents)}"
        )
    return documents


def _measured(
    recipe: ForgettingRecipe,
    name: str,
    opened: _Opened,
    documents: Mapping[str, Sequence[Document]],
    plan: _Plan,
) -> Measured:
    """What the model gives; every process calls this, and all raise what one of them does."""
    with together():
        model = on_gpu(load_model(opened.source, quantized=True))
    sums = evaluate_with_bar(model, documents, recipe.evaluation, name, plan.max_length)
    scores = {} if plan.harness is None else plan.harness.scores(model, opened.tokenizer)
    generated = {}
    if plan.probe is not None:
        generated = plan.probe.texts(model, opened.tokenizer, f"{name}: continuations")
    return Measured(sums, text_facts(documents, opened.tokenizer), scores, generated)


def _settings(base: ModelSource, model: ModelSource) -> dict[str, Any]:
    return {
        f"{role}'s {name}": getattr(source, name)
        for role, source in (("base", base), ("model", model))
        for name in ("path", "revision", "dtype")
    }
