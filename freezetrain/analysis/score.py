"""`freezetrain score`: a score file a language, each written as soon as its language is done.

Also the model that is scored, on one device or split over ranks, and how the ranks share it.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from freezetrain.analysis.recipe import ScoreRecipe
from freezetrain.data.packing import Drawn
from freezetrain.data.texts import languages_in, read_languages
from freezetrain.data.tokens import tokenize
from freezetrain.devices import kind_of, require_engine, start_ranks, world_size
from freezetrain.errors import CheckError, UserError
from freezetrain.extras import imported_for
from freezetrain.files import UNFINISHED, require_space
from freezetrain.formats import fixed
from freezetrain.models import (
    check_fit,
    load_model,
    load_tokenizer,
    meta_model,
    on_gpu,
    stored_dtype,
)
from freezetrain.progress import progress_bar
from freezetrain.ranks import Launch, current_launch, from_first_rank, is_first_rank, together
from freezetrain.recipe.optimization import Engine, Optimization
from freezetrain.recipe.sources import ModelSource
from freezetrain.regions import Base
from freezetrain.regions.base import base_of
from freezetrain.run_folder import Outcome
from freezetrain.scoring import Scores
from freezetrain.scoring.compute import Scoring
from freezetrain.scoring.methods import scored_parameters
from freezetrain.scoring.partition import FullyShard, Partition, Replicated, Split
from freezetrain.tables import Column, Table
from freezetrain.training.engines import deepspeed_config
from freezetrain.training.memory import require_memory
from freezetrain.training.sharded import load_partitioned, load_sharded

Made = dict[str, Any]  # how the scores of a language came about, as their file says


def run(recipe: ScoreRecipe, folder: Path) -> Outcome:
    made = score_languages(recipe, folder)
    # magnitude reads no text
    shown = next((m for m in recipe.methods if m != "magnitude"), recipe.methods[0])
    results = {}
    for language, facts in made[shown].items():
        files = [
            str(_file(recipe, folder, method, language, mark).relative_to(folder))
            for method in recipe.methods
            for mark in [None, *_marks(recipe, method, facts["sequences"])]
        ]
        results[language] = {**facts, "files": files}
    columns = [
        Column("language", str, text=True),
        Column("sequences", lambda language: results[language]["sequences"]),
        Column("tokens", lambda language: results[language]["tokens"]),
        Column("mean NLL, nats/token", lambda language: results[language]["loss"], fixed),
        Column("files", lambda language: results[language]["files"], _files_text, text=True),
    ]
    return Outcome({"scores": results}, [Table("", columns, list(results))])


def _files_text(files: list[str]) -> str:
    return files[0] if len(files) == 1 else str(len(files))


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
    require_engine(recipe.engine, launch)
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
    most = max((_sequences(sequences) for sequences in drawn.values()), default=0)
    require_memory(shape, min(recipe.batch, most), recipe.sequence_length, "batch")
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
        read_languages(recipe.texts, [language], conversations=True)  # refuses what is not there
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
    shorter = "fewer languages, or fewer or shorter sequences"
    with progress_bar("score", is_first_rank(), shorter) as progress:
        for name, drawn in todo.items():
            what = f"score {name} ({names.index(name) + 1} of {len(names)})"
            progress(before, total, what)
            with (
                _naming(name),
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
                            _write_scores(scoring, method, name, base, file)
                for method in recipe.methods:
                    file = _file(recipe, folder, method, name)
                    _write_scores(scoring, method, name, base, file, last=True)
            before += _sequences(drawn)
        progress(total, total)


@contextmanager
def _naming(language: str) -> Iterator[None]:
    """Say of which language a loss is not finite."""
    try:
        yield
    except CheckError as error:
        raise CheckError(f"language {language!r}: {error}") from error


def _write_scores(
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
        finished, tensor = next(self._tensors)
        assert finished == name
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


def check_batch(engine: Engine, launch: Launch, batch: int) -> None:
    """UserError where ranks that share each batch would have no rows of it."""
    world = world_size(engine, launch)
    if kind_of(engine, world) in ("fsdp2", "zero-3") and batch < world:
        raise UserError(
            f"under {engine.kind} the {world} devices share the sequences of each batch, and batch "
            f"is {batch}; use {world} or more"
        )


def load_scored(
    source: ModelSource, engine: Engine, launch: Launch
) -> tuple[PreTrainedModel, Partition]:
    """The model as the engine wants it, and how ranks share it; each calls this once started.

    Raises UserError as load_model does, where deepspeed is asked for and not installed, and for a
    model that fsdp2 cannot read in part.
    """
    world = world_size(engine, launch)
    kind = kind_of(engine, world)
    if kind == "fsdp2":
        return _sharded(source, world)
    if kind == "zero-3":
        return _partitioned(source, engine, launch)
    model = on_gpu(load_model(source))
    return model, Partition() if world == 1 else Replicated()


def _sharded(source: ModelSource, world: int) -> tuple[PreTrainedModel, Partition]:
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    mesh = init_device_mesh(device.type, (world,))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    model = load_sharded(source, mesh, device, policy=policy)
    return model, FullyShard(model)


def _partitioned(
    source: ModelSource, engine: Engine, launch: Launch
) -> tuple[PreTrainedModel, Partition]:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", str(launch.local_rank))  # which DeepSpeed looks for
    with imported_for("deepspeed", "engine.kind zero-3", ", or use fsdp2"):
        from freezetrain.freezing.zero import gathering
    held = stored_dtype(source) if source.dtype == "stored" else getattr(torch, source.dtype)
    config: dict[str, Any] = deepspeed_config(engine, Optimization())
    config["zero_optimization"].pop("offload_optimizer", None)  # there is none
    if held in (torch.bfloat16, torch.float16):
        config["bf16" if held == torch.bfloat16 else "fp16"] = {"enabled": True}
    model = load_partitioned(source, config)
    return model, Zero3(gathering(model, config))


class Zero3(Split):
    """Each rank holds a flat part of every weight, of equal length: the last ones end in padding.

    Without an optimizer DeepSpeed gathers weights and reduces no gradients: each rank has the whole
    one of its own rows of the batch, and they are added up here, in fp32, as each appears.

    ``engine`` is what :func:`~freezetrain.freezing.zero.gathering` returned for the model.
    """

    def __init__(self, engine: object) -> None:
        super().__init__()
        self._engine = engine  # it stops gathering when it is gone

    def device(self, model: nn.Module) -> torch.device:  # weights may be offloaded
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def part(self, parameter: Any) -> Tensor:
        return parameter.ds_tensor.detach()

    def gradient(self, parameter: Any) -> Tensor:
        part = parameter.ds_tensor
        padded = torch.zeros(part.ds_numel * self.world, device=parameter.grad.device)
        padded[: parameter.ds_numel] = parameter.grad.flatten()
        mine = torch.empty(part.ds_numel, device=padded.device)
        group = parameter.ds_process_group
        dist.reduce_scatter(mine, list(padded.chunk(self.world)), group=group)
        return mine.to(part.device)  # which is the CPU's where weights are offloaded

    def whole(self, parameter: Any, part: Tensor) -> Tensor | None:
        full = self._gathered(parameter, part)
        return full.cpu() if self.rank == 0 else None

    def full(self, parameter: Any) -> Tensor:
        return self._gathered(parameter, self.part(parameter))

    def _gathered(self, parameter: Any, part: Tensor) -> Tensor:
        part = part.to("cuda" if torch.cuda.is_available() else "cpu")
        full = torch.empty(part.numel() * self.world, dtype=part.dtype, device=part.device)
        dist.all_gather(list(full.chunk(self.world)), part, group=parameter.ds_process_group)
        return full[: parameter.ds_numel].view(parameter.ds_shape)
