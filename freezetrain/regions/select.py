"""From scores to a region: which entries, rows, columns or tensors score highest or lowest."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from freezetrain.errors import UserError, near_misses
from freezetrain.regions.coverage import layer_of
from freezetrain.regions.entries import Entries
from freezetrain.regions.region import Region
from freezetrain.regions.scores import Scores

Which = Literal["top", "bottom"]
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
    Memory: a few copies of the scores of one tensor, layer or model, as ``per`` says.

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
        parameters: names or glob patterns; None = all that have scores.
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
    if not 0 < ratio <= 1:
        raise UserError(f"expected a ratio above 0 and at most 1, got {ratio}")
    if unit == per == "tensor":
        raise UserError("whole tensors compete per layer or per model, not per tensor: change per")
    reduced = {
        name: _unit_scores(scores[name], dims)
        for name in _candidates(scores, parameters, norms)
        if (dims := _dims(scores, name, unit)) is not None
    }
    if not reduced:
        raise UserError(
            f"nothing to select from: no scored parameter is left with {parameters=}, {norms=} "
            f"and {unit=}"
        )
    entries = {}
    for group in _groups(reduced, per):
        flat = np.concatenate([reduced[name].flatten().numpy() for name in group])
        chosen = torch.from_numpy(pick(flat, int(ratio * len(flat) + 0.5), which))
        sizes = [reduced[name].numel() for name in group]
        for name, mask in zip(group, chosen.split(sizes), strict=True):
            mask = mask.view(reduced[name].shape).expand(scores[name].shape)
            entries[name] = Entries.from_mask(mask)
    made = {
        "operation": "select",
        "ratio": ratio,
        "which": which,
        "per": per,
        "unit": unit,
        "parameters": None if parameters is None else list(parameters),
        "norms": norms,
        "scores": {k: v for k, v in scores.made.items() if k not in ("norms", "transposed")},
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
    scores: Mapping[str, Scores], language: str, ratio: float, *, norms: bool = False
) -> Region:
    """Top ``ratio`` of each tensor for ``language`` that is in no other language's top ``ratio``.

    ``scores`` by language, at least two. Zhang et al. 2024 (arXiv 2402.14700).

    Raises:
        UserError: fewer than two languages, ``language`` not among them, or as :func:`select`.
    """
    if language not in scores or len(scores) < 2:
        raise UserError(
            f"expected the scores of {language!r} and of at least one other language, got those of "
            f"{', '.join(scores) or 'none'}{near_misses(language, scores)}"
        )
    own = select(scores[language], ratio, norms=norms)
    region = own
    for other, other_scores in scores.items():
        if other != language:
            region = region - select(other_scores, ratio, norms=norms)
    made = {
        "operation": "monolingual",
        "language": language,
        "others": [other for other in scores if other != language],
        "ratio": ratio,
        "norms": norms,
        "scores": own.made["scores"],
    }
    return Region(region, region.base, made)


def pick(values: np.ndarray, count: int, which: Which = "top") -> np.ndarray:
    """Bool [N]: the ``count`` largest or smallest of ``values`` [N], ties to the lower index."""
    if count == 0:
        return np.zeros(len(values), dtype=bool)
    values = -values if which == "top" else values
    limit = np.partition(values, count - 1)[count - 1]
    chosen = values < limit
    chosen[np.flatnonzero(values == limit)[: count - np.count_nonzero(chosen)]] = True
    return chosen


def _candidates(scores: Scores, patterns: Sequence[str] | None, norms: bool) -> list[str]:
    """Scored names that may be selected from, sorted."""
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
    return sorted(wanted if norms else wanted - set(scores.made.get("norms", ())))


def _dims(scores: Scores, name: str, unit: Unit) -> tuple[int, ...] | None:
    """The dimensions that make up a unit of ``name``; None where it has no such unit."""
    ndim = scores[name].ndim
    if unit == "entry":
        return ()
    if unit == "tensor":
        return tuple(range(ndim))
    if ndim < 2 or name.endswith("bias"):
        return None
    transposed = name in scores.made.get("transposed", ())
    return (-2,) if (unit == "row") == transposed else (-1,)


def _unit_scores(scores: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Mean scores over ``dims``, kept as size 1, fp32 [...]."""
    if not dims:
        return scores
    # Rounded back from fp64: the order of summation, which differs between machines, is gone.
    return scores.mean(dims, keepdim=True, dtype=torch.float64).float()


def _groups(names: Mapping[str, Tensor], per: Per) -> list[list[str]]:
    """Names whose units compete with each other."""
    if per == "tensor":
        return [[name] for name in names]
    if per == "model":
        return [list(names)]
    layers: dict[int | None, list[str]] = defaultdict(list)
    for name in names:
        layers[layer_of(name)].append(name)
    return list(layers.values())
