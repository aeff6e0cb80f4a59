"""Scores: a tensor per parameter, how much the loss of one language depends on each weight."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freezetrain.errors import UserError, near_misses
from freezetrain.regions import Base
from freezetrain.regions.file import base_from
from freezetrain.regions.storage import AGAIN, read_safetensors, write_safetensors
from freezetrain.scoring.methods import METHODS, per_batch
from freezetrain.user_files import reading

FOR_SELECTION = ("norms", "transposed", "embeddings")  # lists of names in ``made``, for selection


class OnDemand(Mapping[str, Tensor]):
    """Name -> tensor that ``make(name)`` gives each time; nothing of it is kept.

    ``shape(name)`` gives a tensor's shape without making it.
    """

    def __init__(
        self,
        names: Iterable[str],
        shape: Callable[[str], tuple[int, ...]],
        make: Callable[[str], Tensor],
    ) -> None:
        self._names = dict.fromkeys(names)
        self.shape = shape
        self._make = make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # a Mapping would make the tensor to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Scores(Mapping[str, Tensor]):
    """Immutable mapping of parameter name to its scores, fp32 on the CPU, in the model's shapes.

    A dict of tensors is checked and kept. Any other mapping (a file's tensors, a sum) is read and
    checked each time that a tensor is asked for, and nothing of it is kept, so that a loop over
    all needs the memory of one; its own ``shape(name)`` is used where it has one.

    ``base`` names the model. ``made`` says how the scores came about (JSON-able);
    :func:`freezetrain.scoring.compute.compute_scores` writes ``method``, ``language``,
    ``sequences``, ``tokens`` (predicted ones), ``batches`` (in units of the first one, so that a
    smaller last batch is a fraction), ``loss`` (nats per token) and, for selection, ``norms``
    (names of parameters of norms), ``transposed`` (weights stored as [in, out]) and, only where
    they are scored too, ``embeddings`` (what lies outside the decoder blocks).

    Raises:
        UserError: a tensor that is not of a floating dtype, or holds NaN or infinity; of a
            mapping that is no dict, when that tensor is asked for.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        base: Base | None = None,
        made: Mapping[str, Any] | None = None,
    ) -> None:
        self._held = isinstance(tensors, dict)
        if self._held:
            tensors = {name: _checked(name, tensor) for name, tensor in tensors.items()}
        self._tensors = tensors
        self._names = dict.fromkeys(tensors)
        self._file: Path | None = None  # that they were loaded from
        self.base = base
        self.made = dict(made or {})

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        return tensor if self._held else _checked(name, tensor, self._file)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # a Mapping would read the tensor to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter."""
        shape = getattr(self._tensors, "shape", None)
        return tuple(shape(name) if shape else self._tensors[name].shape)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name -> shape."""
        return {name: self.shape(name) for name in self}

    def selectable(self, norms: bool) -> set[str]:
        """Names that regions are selected from: of the decoder blocks, with norms where wanted."""
        left_out = set(self.made.get("embeddings", ()))
        return set(self) - left_out - (set() if norms else set(self.made.get("norms", ())))

    def __repr__(self) -> str:
        return f"Scores({len(self)} parameters, made={self.made})"

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a safetensors file (a folder of shards above 4 GB), whole or not at all.

        One tensor at a time.

        Raises:
            UserError: ``path`` exists and ``overwrite`` is false, or cannot be written.
        """
        header = {
            "format": "freezetrain-scores/1",
            "parameters": list(self),
            "base": asdict(self.base) if self.base else None,
            "made": self.made,
        }
        shapes = {name: (shape, torch.float32) for name, shape in self.shapes.items()}
        write_safetensors(path, self, header, shapes=shapes, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> "Scores":
        """Read what :meth:`save` wrote, each tensor when it is asked for.

        Raises:
            UserError: nothing there, truncated, not a score file, or written by another version.
        """
        tensors, header = read_safetensors(path, "scores")
        with reading("the header of the score file", path, AGAIN):
            names = dict.fromkeys(map(str, header["parameters"]))
            base = base_from(header["base"]) if header["base"] else None
            made = _checked_made(dict(header["made"]))
        if sorted(names) != sorted(tensors):
            raise UserError(
                f"the header of the score file {path} lists other parameters than it has"
            )
        for name in names:
            if 0 in tensors.shape(name):
                raise UserError(
                    f"{path} holds no score of {name!r}, of shape "
                    f"{list(tensors.shape(name))}; {AGAIN}"
                )
        scores = cls(tensors, base, made)
        scores._file = Path(path)
        scores._names = names  # a file has them in an order of its own
        return scores

    @classmethod
    def sum(cls, parts: Sequence["Scores"]) -> "Scores":
        """Add up the scores of several languages; the core region is selected from this sum.

        Each part is first brought to the scale of one batch, so that a language with more data
        does not outweigh the others. With equally many batches this is, up to a constant factor
        that no selection sees, the plain sum of Zhang et al. 2024 (arXiv 2402.14700). A tensor is
        added up when it is asked for, in fp64, one part after another.

        Raises:
            UserError: no parts, other parameters or shapes, another method, another base, or a
                part that does not say its method and its number of batches.
        """
        if not parts:
            raise UserError("expected the scores of at least one language to sum, got none")
        for part in parts:
            _check_method(parts[0], part)
            check_alike(parts[0], part)
        factors = [per_batch(part.made["method"], part.made["batches"]) for part in parts]

        def add_up(name: str) -> Tensor:
            total = torch.zeros(parts[0].shape(name), dtype=torch.float64)
            for part, factor in zip(parts, factors, strict=True):
                total.add_(part[name], alpha=factor)
            return total.float()

        made = {
            **{key: parts[0].made.get(key, []) for key in FOR_SELECTION if key in parts[0].made},
            "method": parts[0].made["method"],
            "batches": 1,
            "sum": [
                {key: part.made.get(key) for key in ("language", "sequences", "tokens", "batches")}
                for part in parts
            ],
        }
        return cls(OnDemand(parts[0], parts[0].shape, add_up), parts[0].base, made)


def _checked_made(made: dict[str, Any]) -> dict[str, Any]:
    """What a header says of how scores were made; ValueError where that cannot be."""
    for key in FOR_SELECTION:
        names = made.get(key, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"expected names of parameters as {key}, got {names!r}")
    if "method" in made and made["method"] not in METHODS:
        raise ValueError(
            f"expected one of {', '.join(METHODS)} as the method, got {made['method']!r}"
        )
    batches = made.get("batches", 1)
    if not isinstance(batches, int | float) or not 0 < batches < inf:
        raise ValueError(f"expected a number of batches above 0, got {batches!r}")
    if not isinstance(made.get("language"), str | None):
        raise ValueError(f"expected the name of a language, got {made['language']!r}")
    return made


def _checked(name: str, tensor: Tensor, file: Path | None = None) -> Tensor:
    """``tensor`` as fp32 on the CPU; what is wrong with it is said with the ``file`` it is from."""
    where = f", in {file}; {AGAIN}" if file else ""
    if not tensor.is_floating_point():
        raise UserError(f"expected floating scores of {name!r}, got {tensor.dtype}{where}")
    tensor = tensor.detach().to("cpu", torch.float32)
    # A finite sum has finite parts, and is quick; sums of finite ones may overflow. The extremes
    # are NaN if anything is. Neither costs a copy of the tensor.
    if not tensor.sum().isfinite() and not all(e.isfinite() for e in tensor.aminmax()):
        raise UserError(f"expected finite scores, got NaN or infinity in {name!r}{where}")
    return tensor


def _check_method(first: Scores, other: Scores) -> None:
    """Refuse to sum what is no measure of the same."""
    for part in (first, other):
        if not {"method", "batches"} <= part.made.keys() or not part.made["batches"] > 0:
            raise UserError("expected scores that say their method and number of batches to sum")
    if first.made["method"] != other.made["method"]:
        raise UserError(
            f"expected scores of one method to sum, got {first.made['method']!r} and "
            f"{other.made['method']!r}"
        )


def check_alike(first: Scores, other: Scores) -> None:
    """UserError unless both are of one base, where known, and of the same parameters and shapes."""
    if first.base and other.base and first.base.fingerprint != other.base.fingerprint:
        raise UserError("expected scores of one base model, got those of different models")
    if set(first) != set(other):
        name = min(set(first) ^ set(other))
        raise UserError(f"expected scores of the same parameters, only some hold {name!r}")
    for name in first:
        if first.shape(name) != other.shape(name):
            raise UserError(
                f"expected scores of one shape for {name!r}, got {list(first.shape(name))} and "
                f"{list(other.shape(name))}"
            )


def language_scores(folder: str | Path, languages: Sequence[str] = ()) -> dict[str, Scores]:
    """Scores of ``languages``, in their order; of all that the folder holds if none is named.

    Raises:
        UserError: no score file there, or none of a language.
    """
    folder = Path(folder)
    files = {path.name.removesuffix(".safetensors"): path for path in folder.glob("*.safetensors")}
    if not files:
        raise UserError(
            f"expected a folder of score files at {folder}, found none; make them with "
            "`freezetrain score`"
        )
    for language in languages:
        if language not in files:
            raise UserError(
                f"{folder} has no scores of language {language!r}{near_misses(language, files)}; "
                f"it has {' '.join(sorted(files))}"
            )
    return {language: Scores.load(files[language]) for language in languages or sorted(files)}
