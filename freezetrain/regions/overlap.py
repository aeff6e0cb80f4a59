"""Overlap of regions, and the shares of layers and of kinds of parameters that a region holds."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from freezetrain.errors import UserError
from freezetrain.regions.entries import Entries
from freezetrain.regions.parameters import layer_of
from freezetrain.regions.region import Region, coverage

_CHUNK = 1 << 18  # positions that are counted at a time; below 2**24, which float32 adds exactly


@dataclass(frozen=True)
class Shares:
    """Fractions between 0 and 1 of the weights of each layer, or kind, that are in a region."""

    by_layer: dict[int, float]
    by_kind: dict[str, float]


def jaccard_matrix(regions: Mapping[str, Region]) -> list[list[float]]:
    """[n, n]: entries in both over entries in either, for each pair; two empty regions: 1.

    Entries are compared by position, whatever the base, as long as parameters of one name have one
    shape (UserError where not). Takes the memory of all regions' indices in one parameter that
    several of them hold, of rows or columns where all hold such: rows of a vocabulary stay rows.
    """
    both = torch.zeros(len(regions), len(regions), dtype=torch.float64)
    for name in sorted(set(chain.from_iterable(regions.values()))):
        shapes = {key: region[name].shape for key, region in regions.items() if name in region}
        first, *others = shapes
        for other in others:
            if shapes[other] != shapes[first]:
                raise UserError(
                    f"expected {name} to have one shape in all regions, got "
                    f"{list(shapes[first])} in {first!r} and {list(shapes[other])} in "
                    f"{other!r}; compare regions of models of one architecture and size"
                )
        none = Entries.empty(shapes[first])
        both += _common([region.get(name, none) for region in regions.values()])
    sizes = both.diagonal()
    either = sizes[:, None] + sizes[None, :] - both
    return torch.where(either > 0, both / either, 1.0).tolist()


def _common(found: Sequence[Entries]) -> Tensor:
    """[n, n] numbers of entries of one parameter that two of ``found`` have in common."""
    held = [entries for entries in found if entries.count]
    if len(held) < 2:
        return torch.tensor([entries.count for entries in found], dtype=torch.float64).diag()
    kinds = {entries.kind for entries in held}
    if kinds in ({"rows"}, {"columns"}):
        slices = held[0].shape[0 if kinds == {"rows"} else -1]
        sets = [torch.zeros(0) if entries.data is None else entries.data for entries in found]
        return _in_both([part.long() for part in sets]) * (held[0].numel // slices)
    return _in_both([entries.indices() for entries in found])


def _in_both(sets: Sequence[Tensor]) -> Tensor:
    """[n, n] numbers of elements that two of ``sets``, each sorted int64, have in common."""
    elements, numbers = torch.unique(torch.cat(list(sets)), return_inverse=True)
    numbers_by_set = numbers.split([len(elements_of_set) for elements_of_set in sets])
    both = torch.zeros(len(sets), len(sets), dtype=torch.float64)
    for start in range(0, len(elements), _CHUNK):
        stop = min(start + _CHUNK, len(elements))
        contains = torch.zeros(len(sets), stop - start)  # 1 where a set holds an element
        bounds = torch.tensor([start, stop])
        for row, own in zip(contains, numbers_by_set, strict=True):
            low, high = torch.searchsorted(own, bounds).tolist()
            row[own[low:high] - start] = 1.0
        both += contains @ contains.T
    return both


def expected_jaccard(a: Region, b: Region) -> float:
    """What random regions with as many entries of each parameter as ``a`` and ``b`` would have.

    Expected entries in both, Σ a_p·b_p / n_p over parameters p of n_p entries (hypergeometric),
    over expected entries in either; the ratio's own expectation differs by the order of 1 / size.
    """
    both = sum(own.count * b[name].count / own.numel for name, own in a.items() if name in b)
    either = a.count + b.count - both
    return both / either if either else 1.0


def shares(region: Region, numels: Mapping[str, int] | None = None) -> Shares:
    """How much of each layer and of each kind of parameter the region holds.

    ``numels``: parameter -> entries, of all parameters that count; None: the region's own. A kind
    is a parameter's name within its layer, without ``.weight``: ``mlp.down_proj``; of all experts
    together, ``mlp.experts.*.down_proj``. Parameters outside the layers belong to neither.
    """
    if numels is None:
        numels = {name: entries.numel for name, entries in region.items()}
    counts = {name: entries.count for name, entries in region.items()}
    kind_counts: dict[str, int] = defaultdict(int)
    kind_numels: dict[str, int] = defaultdict(int)
    for name, numel in numels.items():
        if layer_of(name) is not None:
            kind_counts[kind_of(name)] += counts.get(name, 0)
            kind_numels[kind_of(name)] += numel
    return Shares(coverage(counts, numels).layers, coverage(kind_counts, kind_numels).tensors)


def kind_of(name: str) -> str:
    """``mlp.down_proj`` for ``model.layers.3.mlp.down_proj.weight``."""
    within = re.split(r"\.\d+\.", f".{name}", maxsplit=1)[-1].removesuffix(".weight")
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", within)
