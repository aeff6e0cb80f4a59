"""`freezetrain score`: a score file a language, each written as soon as its language is done."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from freezetrain.analysis.recipe import ScoreRecipe
from freezetrain.analysis.score_ranks import check_batch, load_scored, start_ranks
from freezetrain.data.packing import Drawn
from freezetrain.data.texts import languages_in, read_languages
from freezetrain.data.tokens import tokenize
from freezetrain.errors import CheckError, UserError
from freezetrain.files import UNFINISHED, require_space
from freezetrain.models import check_fit, load_tokenizer, meta_model
from freezetrain.progress import progress_bar
from freezetrain.ranks import Launch, current_launch, from_first_rank, is_first_rank, together
from freezetrain.regions import Base
from freezetrain.regions.base import base_of
from freezetrain.run_folder import Outcome
from freezetrain.scoring import Scores
from freezetrain.scoring.compute import Scoring
from freezetrain.scoring.methods import scored_parameters

Made = dict[str, Any]


def run(recipe: ScoreRecipe, folder: Path) -> Outcome:
    made = score_languages(recipe, folder)
    shown = next((m for m in recipe.methods if m != "magnitude"), recipe.methods[0])
    table = Table("language", "sequences", "tokens", "mean NLL (nats/token)", "files")
    results = {}
    for name, facts in made[shown].items():
        files = [
            scores_folder(recipe, folder, method, mark).relative_to(folder) / f"{name}.safetensors"
            for method in recipe.methods
            for mark in [None, *_marks(recipe, method, facts["sequences"])]
        ]
        results[name] = {**facts, "files": [str(file) for file in files]}
        # magnitude reads no text
        loss = "-" if facts["loss"] is None else f"{facts['loss']:.3f}"
        counts = (f"{facts[count]:,}" for count in ("sequences", "tokens"))
        where = str(files[0]) if len(files) == 1 else f"{len(files)}"
        table.add_row(escape(name), *counts, loss, escape(where))
    return Outcome({"scores": results}, [table])


def scores_folder(
    recipe: ScoreRecipe, folder: Path, method: str | None = None, sequences: int | None = None
) -> Path:
    """Where in ``folder`` the scores by ``method`` (None: the first) lie, language by language.

    ``sequences``: those after so many, a snapshot. None: after all.
    """
    if len(recipe.methods) > 1:
        folder = folder / (method or recipe.methods[0])
    return folder if sequences is None else folder / f"at-{sequences}"


def score_languages(recipe: ScoreRecipe, folder: Path) -> dict[str, dict[str, Made]]:
    """Score what is not scored in ``folder`` yet; method → language → how its scores were made.

    Starts the ranks that the engine wants; every rank calls this, and rank 0 writes the files. A
    language whose files are there is left alone, so that a repeated run goes on where one was
    killed.

    Raises UserError for what the recipe's parts refuse, before a model is loaded; CheckError for a
    loss that is not finite.
    """
    launch = current_launch()
    check_batch(recipe.engine, launch, recipe.batch)
    tokenizer = load_tokenizer(recipe.model)
    shape = meta_model(recipe.model)
    check_fit(shape, tokenizer, recipe.sequence_length)
    names = recipe.languages or languages_in(recipe.texts)
    todo = [name for name in names if not _done(recipe, folder, name)]
    needed = sum(
        4 * prod(parameter.shape) * len(todo) * (1 + len(recipe.snapshots))
        for method in recipe.methods
        for parameter in scored_parameters(shape, method, None, recipe.embeddings).values()
    )
    require_space(folder, needed, "the scores")
    drawn = {name: _drawn(recipe, name, tokenizer) for name in todo}
    start_ranks(recipe.engine, launch)
    todo = from_first_rank(todo)
    if is_first_rank():
        for unfinished in folder.rglob(f".*{UNFINISHED}"):  # of a run that was killed
            shutil.rmtree(unfinished)
    if todo:
        _score(recipe, folder, launch, names, {name: drawn[name] for name in todo})
    made: dict[str, dict[str, Made]] = {
        method: {
            name: Scores.load(_file(recipe, folder, method, name)).made
            for name in (names if is_first_rank() else ())
        }
        for method in recipe.methods
    }
    return from_first_rank(made)


def _drawn(recipe: ScoreRecipe, language: str, tokenizer: PreTrainedTokenizerBase) -> Drawn | None:
    """The sequences to score; None if no method reads any."""
    if recipe.methods == ["magnitude"]:
        read_languages(recipe.texts, [language])  # refuses what is not there
        return None
    return Drawn(
        tokenize(recipe.texts, language, tokenizer, recipe.cache, recipe.workers),
        recipe.sequence_length,
        recipe.sequences,
        first=recipe.first,
        seed=recipe.seed,
    )


def _score(
    recipe: ScoreRecipe,
    folder: Path,
    launch: Launch,
    names: Sequence[str],
    todo: Mapping[str, Drawn | None],
) -> None:
    """Score the languages ``todo``, some of ``names``; None: no text is read."""
    model, partition = load_scored(recipe.model, recipe.engine, launch)
    base = base_of(model, partition.full)
    total, before = sum(map(_sequences, todo.values())), 0
    with progress_bar("score", shown=is_first_rank()) as progress:
        for name, drawn in todo.items():
            what = f"score {name} ({names.index(name) + 1} of {len(names)})"
            progress(before, total, what)
            with (
                _about(name),
                Scoring(
                    model, recipe.methods, partition=partition, embeddings=recipe.embeddings
                ) as scoring,
            ):
                for batch in () if drawn is None else drawn.batches(recipe.batch, recipe.snapshots):
                    scoring.add(batch)
                    progress(before + scoring.sequences, total)
                    for method in recipe.methods:
                        if scoring.sequences in _marks(recipe, method, len(drawn or ())):
                            file = _file(recipe, folder, method, name, scoring.sequences)
                            _leave(scoring, method, name, base, file)
                for method in recipe.methods:
                    file = _file(recipe, folder, method, name)
                    _leave(scoring, method, name, base, file, last=True)
            before += _sequences(drawn)
        progress(total, total)


@contextmanager
def _about(language: str) -> Iterator[None]:
    """Say of which language a loss is not finite."""
    try:
        yield
    except CheckError as error:
        raise CheckError(f"language {language!r}: {error}") from error


def _leave(
    scoring: Scoring, method: str, language: str, base: Base, file: Path, last: bool = False
) -> None:
    """Write the scores of the text so far, unless an earlier start has; all ranks call this."""
    if from_first_rank(file.exists()):
        return
    tensors = scoring.tensors(method, last)
    with together():
        try:
            made = scoring.made(method, language)
            if is_first_rank():
                file.parent.mkdir(parents=True, exist_ok=True)
                Scores(_Finished(scoring.shapes(method), tensors), base, made).save(file)
        finally:
            with suppress(UserError):  # rank 0 found the same
                for _ in tensors:  # other ranks give their parts, also where nothing can be written
                    pass


class _Finished(Mapping[str, Tensor]):
    """Scores that are finished one after another, to be asked for once and in their order."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], tensors: Iterator[tuple[str, Tensor | None]]
    ) -> None:
        self._shapes = shapes
        self._tensors = tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def __getitem__(self, name: str) -> Tensor:
        found, tensor = next(self._tensors)
        assert found == name
        assert tensor is not None
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _done(recipe: ScoreRecipe, folder: Path, language: str) -> bool:
    """Whether all files of a language are there; those after all its sequences come last."""
    return all(_file(recipe, folder, method, language).exists() for method in recipe.methods)


def _file(
    recipe: ScoreRecipe, folder: Path, method: str, language: str, sequences: int | None = None
) -> Path:
    return scores_folder(recipe, folder, method, sequences) / f"{language}.safetensors"


def _marks(recipe: ScoreRecipe, method: str, sequences: int) -> list[int]:
    """The snapshots of a language of which so many ``sequences`` are scored."""
    return [n for n in recipe.snapshots if n < sequences and method != "magnitude"]


def _sequences(drawn: Drawn | None) -> int:
    """How many are scored, 1 where no text is read: a language's share of the progress bar."""
    return 1 if drawn is None else len(drawn)
