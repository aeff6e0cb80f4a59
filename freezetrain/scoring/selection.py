"""From scores to a region: which entries, rows, columns or tensors score highest or lowest."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fnmatch import fnmatchcase
from functools import partial
from math import prod
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch

from freezetrain.errors import UserError, near_misses
from freezetrain.regions import Entries, Region
from freezetrain.regions.parameters import layer_of
from freezetrain.scoring.scores import FOR_SELECTION, Scores, check_alike

Item = TypeVar("Item")

Fetched = TypeVar("Fetched")

Which = Literal["top", "bottom"]

Per = Literal["tensor", "layer", "model"]

Unit = Literal["entry", "row", "column", "tensor"]

Values = np.ndarray[tuple[int], np.dtype[np.float32]]

Read = Callable[[str], Values]
"""Gives the scores of a parameter's units, the same whenever it is called."""

_CHUNK = 1 << 18  # values that are compared at a time, so that the outcome stays in the cache

_SAMPLE = 1 << 14  # values by which the search for the limit begins


def select(
    scores: Scores,
    ratio: float,
    *,
    which: Which = "top",
    per: Per = "tensor",
    unit: Unit = "entry",
    parameters: Sequence[str] | None = None,
    norms: bool = False,
) -> Region:
    """The ``ratio`` of units with the largest (smallest) scores, within each tensor by default.

    Of n units, ``int(ratio * n + 0.5)`` are taken. Ties go to the lower flat index, across tensors
    to the name that sorts first, so that the same scores give the same region on every machine.
    Memory: the region, a few copies of the scores of one tensor, and those of the next. Where
    entries compete beyond their tensor, each tensor is read three times, and 6 bytes are held for
    each entry to be taken.

    Args:
        ratio: more than 0, at most 1. 0.01, 0.03 and 0.05 in Zhang et al. 2024 (arXiv 2402.14700).
        per: where units compete: within a tensor, within a layer (the first integer in a name;
            names without one compete among themselves), or all with all.
        unit: a unit larger than an entry scores the mean of its entries, which ranks rows or
            columns of one tensor as their sum does. A ``row`` belongs to one output feature, a
            ``column`` to one input feature, also where a weight is stored transposed (GPT-2's
            Conv1D); each fused expert has its own. Biases and vectors have neither and are left
            out. Columns: Source-Shielded Updates (arXiv 2512.04844). A ``tensor`` is a whole
            parameter, per layer or model: half of them is HFT (arXiv 2404.18466).
        parameters: names or glob patterns; None = all that have scores. Those outside the decoder
            blocks (``scores.made["embeddings"]``) never take part.
        norms: whether parameters of norms (``scores.made["norms"]``) take part.

    Raises:
        UserError: a ratio outside (0, 1]; an unknown option; a pattern that matches nothing, or
            nothing left to select from; whole tensors per tensor.
    """
    for option, value, known in (("which", which, Which), ("per", per, Per), ("unit", unit, Unit)):
        if value not in get_args(known):
            raise UserError(
                f"expected {option} to be one of {', '.join(get_args(known))}, got {value!r}"
            )
    _check_ratio(ratio)
    if unit == per == "tensor":
        raise UserError("whole tensors compete per layer or per model, not per tensor: change per")
    transposed = scores.made.get("transposed", ())
    dims = {}
    for name in _candidates(scores, parameters, norms):
        own_dims = unit_dims(scores.shape(name), name, name in transposed, unit)
        if own_dims is not None:
            dims[name] = own_dims
    if not dims:
        raise UserError(
            f"nothing to select from: no scored parameter is left with {parameters=}, {norms=} "
            f"and {unit=}"
        )
    groups = [{name: dims[name] for name in group} for group in _groups(dims, per)]
    entries: dict[str, Entries] = {}
    readers = read_ahead(partial(_reader, scores), groups)  # from the disk while others compete
    for group in groups:
        entries |= _compete(scores, group, next(readers), ratio, which)
    made = {
        "operation": "select",
        "ratio": ratio,
        "which": which,
        "per": per,
        "unit": unit,
        "parameters": None if parameters is None else list(parameters),
        "norms": norms,
        "scores": _provenance(scores),
    }
    return Region(entries, scores.base, made)


def core(scores: Sequence[Scores], ratio: float, *, norms: bool = False) -> Region:
    """Top ``ratio`` (above 0, at most 1) of each tensor by the sum of several languages' scores.

    The core linguistic region of Zhang et al. 2024 (arXiv 2402.14700), there of six languages.
    ``norms``: whether parameters of norms take part.

    Raises:
        UserError: as :meth:`Scores.sum` and :func:`select`.
    """
    return select(Scores.sum(scores), ratio, norms=norms)


def monolingual(
    scores: Mapping[str, Scores],
    ratio: float,
    *,
    languages: Iterable[str] | None = None,
    norms: bool = False,
) -> dict[str, Region]:
    """Of each language, the top ``ratio`` of each tensor that is in no other one's top ``ratio``.

    ``scores`` by language, at least two; ``languages``: those whose regions are wanted, None = all.
    Each tensor of each language is read once; memory: the regions, and a few copies of the scores
    of one tensor. Zhang et al. 2024 (arXiv 2402.14700).

    Raises:
        UserError: fewer than two languages, scores of other parameters or of another base, a
            wanted language that has no scores, or as :func:`select`.
    """
    _check_ratio(ratio)
    wanted = list(scores) if languages is None else list(languages)
    if len(scores) < 2:
        raise UserError(
            f"expected the scores of two languages at least, one from which to take those of the "
            f"others, got those of {', '.join(scores) or 'none'}"
        )
    for language in wanted:
        if language not in scores:
            raise UserError(
                f"expected the scores of {language!r}, got those of {', '.join(scores)}"
                f"{near_misses(language, scores)}"
            )
    first = next(iter(scores.values()))
    for part in scores.values():
        check_alike(first, part)
    entries: dict[str, dict[str, Entries]] = {language: {} for language in wanted}
    for name in _candidates(first, None, norms):
        tops = {
            language: _compete(part, {name: ()}, _reader(part, {name: ()}), ratio, "top")[name]
            for language, part in scores.items()
        }
        holders = torch.zeros(prod(first.shape(name)), dtype=torch.int16)  # languages, per entry
        for top in tops.values():
            holders[top.indices()] += 1
        for language in wanted:
            own = tops[language].indices()
            entries[language][name] = Entries.from_indices(
                first.shape(name), own[holders[own] == 1]
            )
    return {
        language: Region(
            entries[language],
            scores[language].base,
            {
                "operation": "monolingual",
                "language": language,
                "others": [other for other in scores if other != language],
                "ratio": ratio,
                "norms": norms,
                "scores": _provenance(scores[language]),
            },
        )
        for language in wanted
    }


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio <= 1:
        raise UserError(f"expected a ratio above 0 and at most 1, got {ratio}")


def _provenance(scores: Scores) -> dict[str, Any]:
    """How scores were made, without the lists of names."""
    return {key: value for key, value in scores.made.items() if key not in FOR_SELECTION}


def _candidates(scores: Scores, patterns: Sequence[str] | None, norms: bool) -> list[str]:
    """Scored names that may be selected from, sorted; never those outside the decoder blocks."""
    wanted = set(scores)
    if patterns is not None:
        wanted = set()
        for pattern in patterns:
            matches = {name for name in scores if name == pattern or fnmatchcase(name, pattern)}
            if not matches:
                raise UserError(
                    f"no scored parameter is named or matches {pattern!r}"
                    f"{near_misses(pattern, scores)}"
                )
            wanted |= matches
    return sorted(wanted & scores.selectable(norms))


def unit_dims(
    shape: Sequence[int], name: str, transposed: bool, unit: Unit
) -> tuple[int, ...] | None:
    """The dimensions that make up a unit of a parameter; None where it has no such unit.

    ``transposed``: whether it is a weight stored as [in, out].
    """
    ndim = len(shape)
    if unit == "entry":
        return ()
    if unit == "tensor":
        return tuple(range(ndim))
    if ndim < 2 or name.endswith("bias"):
        return None
    return (ndim - 2,) if (unit == "row") == transposed else (ndim - 1,)


def read_ahead(fetch: Callable[[Item], Fetched], items: Iterable[Item]) -> Iterator[Fetched]:
    """``fetch(item)`` for each item in order, as :func:`map`, but one ahead, in a thread.

    No more than two results are held here. An exception is raised where its item would have come.
    """
    waiting: deque[Future[Fetched]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for item in items:
            waiting.append(pool.submit(fetch, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _reader(scores: Scores, dims: Mapping[str, tuple[int, ...]]) -> Read:
    """Reads the scores of units; what is small enough to be kept is read at once, and only once.

    ``dims``: parameter -> the dimensions that make up a unit.
    """
    if len(dims) == 1 or any(dims.values()):
        return {name: _unit_scores(scores, name, own) for name, own in dims.items()}.__getitem__
    return lambda name: _unit_scores(scores, name, dims[name])


def _compete(
    scores: Scores, dims: Mapping[str, tuple[int, ...]], read: Read, ratio: float, which: Which
) -> dict[str, Entries]:
    """The entries of the ``ratio`` of units with the largest (smallest) scores in some parameters.

    ``dims`` as for :func:`_reader`, which gives ``read``.
    """
    grids = {  # shapes with the dimensions of a unit of size 1
        name: torch.Size(1 if dim in own else size for dim, size in enumerate(scores.shape(name)))
        for name, own in dims.items()
    }
    count = int(ratio * sum(grid.numel() for grid in grids.values()) + 0.5)
    limit, ties = _limit(read, {name: grid.numel() for name, grid in grids.items()}, count, which)
    entries = {}
    for name, grid in grids.items():
        taken, ties = _taken(read(name), limit, ties, which)
        units = Entries.from_indices(grid, torch.from_numpy(taken))
        if dims[name]:
            units = Entries.from_mask(units.mask().expand(scores.shape(name)))
        entries[name] = units
    return entries


def _unit_scores(scores: Scores, name: str, dims: tuple[int, ...]) -> Values:
    """Mean scores over ``dims``, fp32 [units]."""
    values = scores[name]
    if dims:
        # Rounded back from fp64: the order of summation, which differs between machines, is gone.
        values = values.mean(dims, dtype=torch.float64).float()
    return values.flatten().numpy()


def _limit(
    read: Read, sizes: Mapping[str, int], count: int, which: Which
) -> tuple[np.float32, int]:
    """The ``count``-th largest (smallest, negated) value, and how many equal to it are taken.

    ``sizes``: name -> number of values.
    """
    if not count:
        return np.float32(np.inf), 0
    largest = _largest(read, sizes, count, which, _likely_bound(read, sizes, count, which))
    if len(largest) < count:  # the bound was too high
        largest = _largest(read, sizes, count, which, np.float32(-np.inf))
    limit = _keep_largest(largest, count)
    return limit, int((largest[:count] == limit).sum())


def _likely_bound(read: Read, sizes: Mapping[str, int], count: int, which: Which) -> np.float32:
    """A value that probably somewhat more than ``count`` values are above: by a sample of them."""
    total, generator = sum(sizes.values()), np.random.default_rng(0)
    samples = []
    for name, size in sizes.items():
        if size:
            places = generator.integers(size, size=-(-_SAMPLE * size // total))
            samples.append(read(name)[places])
    sample = np.concatenate(samples)
    expected = len(sample) * count / total
    rank = int(expected + 4 * expected**0.5) + 1  # four standard deviations more
    if rank >= len(sample):
        return np.float32(-np.inf)
    bound = _keep_largest(sample if which == "top" else -sample, rank)
    return np.float32(np.nextafter(bound, -np.inf))  # so that those equal to it are above


def _largest(
    read: Read, names: Iterable[str], count: int, which: Which, bound: np.float32
) -> Values:
    """The ``count`` largest (smallest, negated) values above ``bound``, among some others."""
    largest = np.empty(count + max(count // 2, _CHUNK), dtype=np.float32)
    size = 0  # of what is in use of it
    for name in names:
        for part in _parts(read(name), which):
            part = part[part > bound]  # a copy, so that no name holds the tensor for the next
            if size + len(part) > len(largest):
                bound, size = _keep_largest(largest[:size], count), count
            largest[size : size + len(part)] = part
            size += len(part)
    return largest[:size]


def _keep_largest(values: Values, count: int) -> np.float32:
    """Move the ``count`` largest values to the front, the smallest of them first; returns that."""
    values.partition(len(values) - count)
    values[:count] = values[len(values) - count :]
    return np.float32(values[0])


def _taken(
    values: Values, limit: np.float32, ties: int, which: Which
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], int]:
    """Sorted int64 indices of the values beyond the limit and of the first ``ties`` equal to it.

    Also how many of these ties are left for the values to come.
    """
    indices = []
    for number, part in enumerate(_parts(values, which)):
        reaching = np.flatnonzero(part >= limit)
        equal = np.flatnonzero(part[reaching] == limit)
        indices.append(np.delete(reaching, equal[ties:]) + number * _CHUNK)
        ties -= min(ties, len(equal))
    return np.concatenate([*indices, np.zeros(0, dtype=np.int64)]), ties


def _parts(values: Values, which: Which) -> Iterator[Values]:
    """Successive parts of at most ``_CHUNK`` values, negated where the smallest are wanted."""
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK]
        yield part if which == "top" else -part


def _groups(names: Iterable[str], per: Per) -> list[list[str]]:
    """Names whose units compete with each other."""
    if per == "tensor":
        return [[name] for name in names]
    if per == "model":
        return [list(names)]
    layers: dict[int | None, list[str]] = defaultdict(list)
    for name in names:
        layers[layer_of(name)].append(name)
    return list(layers.values())
