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
from freezetrain.scoring.threshold import Read, Threshold, Which, few_of_many

Item = TypeVar("Item")

Fetched = TypeVar("Fetched")


def one_ahead(fetch: Callable[[Item], Fetched], items: Iterable[Item]) -> Iterator[Fetched]:
    """``fetch(item)`` for each item in order, as :func:`map`, but one ahead, in a thread.

    Of what was fetched, no more than two are held here. An exception of ``fetch`` is raised where
    its item would have come; items after it may have been fetched too.
    """
    waiting: deque[Future[Fetched]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for item in items:
            waiting.append(pool.submit(fetch, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


Per = Literal["tensor", "layer", "model"]

Unit = Literal["entry", "row", "column", "tensor"]


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
    Memory: the region, a few copies of the scores of one tensor, and those of the next; where
    entries compete beyond their tensor, each tensor is read a few times for it, and of the few
    entries in 100 that may be taken, scores and places are held.

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
    dims = {
        name: found
        for name in _candidates(scores, parameters, norms)
        if (found := unit_dims(scores.shape(name), name, _transposed(scores, name), unit))
        is not None
    }
    if not dims:
        raise UserError(
            f"nothing to select from: no scored parameter is left with {parameters=}, {norms=} "
            f"and {unit=}"
        )
    groups = [{name: dims[name] for name in group} for group in _groups(dims, per)]
    entries: dict[str, Entries] = {}
    read = one_ahead(partial(_reads, scores), groups)  # from the disk while others compete
    for group in groups:
        entries |= _compete(scores, group, next(read), ratio, which)
    made = {
        "operation": "select",
        "ratio": ratio,
        "which": which,
        "per": per,
        "unit": unit,
        "parameters": None if parameters is None else list(parameters),
        "norms": norms,
        "scores": _about(scores),
    }
    return Region(entries, scores.base, made)


def core(scores: Sequence[Scores], ratio: float, *, norms: bool = False) -> Region:
    """Top ``ratio`` of each tensor by the sum of several languages' scores.

    The core linguistic region of Zhang et al. 2024 (arXiv 2402.14700), there of six languages.

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
            language: _compete(part, {name: ()}, _reads(part, {name: ()}), ratio, "top")[name]
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
                "scores": _about(scores[language]),
            },
        )
        for language in wanted
    }


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio <= 1:
        raise UserError(f"expected a ratio above 0 and at most 1, got {ratio}")


def _about(scores: Scores) -> dict[str, Any]:
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


def _transposed(scores: Scores, name: str) -> bool:
    return name in scores.made.get("transposed", ())


def _reads(scores: Scores, dims: Mapping[str, tuple[int, ...]]) -> list[Read]:
    """Of each parameter how its units' scores are read; ``dims`` as for :func:`_compete`."""
    reads: list[Read] = [partial(_unit_scores, scores, name, own) for name, own in dims.items()]
    if len(reads) == 1 or any(dims.values()):  # small enough to be kept, so that it is read once
        return [_kept(read()) for read in reads]
    return reads


def _compete(
    scores: Scores,
    dims: Mapping[str, tuple[int, ...]],
    reads: Sequence[Read],
    ratio: float,
    which: Which,
) -> dict[str, Entries]:
    """The entries of the ``ratio`` of units with the largest (smallest) scores in some parameters.

    ``dims``: parameter -> the dimensions that make up a unit.
    """
    places = {  # shapes with the dimensions of a unit of size 1
        name: torch.Size(1 if dim in own else size for dim, size in enumerate(scores.shape(name)))
        for name, own in dims.items()
    }
    sizes = [place.numel() for place in places.values()]
    count = int(ratio * sum(sizes) + 0.5)
    if not any(dims.values()):
        few = few_of_many(reads, sizes, count, which)
        if few is not None:
            return {
                name: Entries.from_indices(place, torch.from_numpy(index))
                for (name, place), index in zip(places.items(), few, strict=True)
            }
    threshold = Threshold(reads, count, which)
    entries = {}
    for (name, place), read in zip(places.items(), reads, strict=True):
        taken = torch.from_numpy(threshold.take(read()))
        entries[name] = Entries.from_mask(taken.view(place).expand(scores.shape(name)))
    return entries


def _unit_scores(scores: Scores, name: str, dims: tuple[int, ...]) -> np.ndarray:
    """Mean scores over ``dims``, fp32 [units]."""
    values = scores[name]
    if dims:
        # Rounded back from fp64: the order of summation, which differs between machines, is gone.
        values = values.mean(dims, dtype=torch.float64).float()
    return values.flatten().numpy()


def _kept(values: np.ndarray) -> Read:
    return lambda: values


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
