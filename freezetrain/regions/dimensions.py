"""On which rows and columns a region gathers, and which dimensions recur from matrix to matrix."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from freezetrain.errors import UserError
from freezetrain.regions.concentration import (
    fullest_slices,
    number_of_slices,
    share_of_fullest,
    slice_counts,
)
from freezetrain.regions.draw import draw_indices
from freezetrain.regions.matrices import Direction, matrix_entries
from freezetrain.regions.region import Region
from freezetrain.regions.residual import residual_directions


def denser_directions(region: Region, model: nn.Module, top: float = 0.01) -> dict[str, Direction]:
    """Matrix kind -> whether the region gathers more on its rows or on its columns.

    By the share of its entries in the fullest ``top`` of them, mean over layers; ties: rows.
    """
    lead: dict[str, float] = defaultdict(float)  # of the rows' shares over those of the columns
    for matrix, entries in matrix_entries(region, model):
        rows, columns = slice_counts(entries, matrix.input_dim)
        lead[matrix.kind] += share_of_fullest(rows, top) - share_of_fullest(columns, top)
    return {kind: "rows" if more >= 0 else "columns" for kind, more in lead.items()}


def fullest(region: Region, top: float, model: nn.Module) -> Region:
    """The fullest ``top`` of the rows, or columns, of each matrix, whole.

    Rows or columns: on which of them the region gathers more in that kind of matrix, see
    :func:`denser_directions`. Where the region has entries in fewer of them, only these.

    Raises:
        UserError: ``top`` outside (0, 1]; no entry in any matrix of the decoder blocks.
    """
    _check_top(top)
    directions = denser_directions(region, model, top)
    entries = {}
    for matrix, here in matrix_entries(region, model):
        direction = directions[matrix.kind]
        rows, columns = slice_counts(here, matrix.input_dim)
        counts = rows if direction == "rows" else columns
        entries[matrix.name] = matrix.whole(direction, fullest_slices(counts, top))
    if not entries:
        raise UserError(
            "expected a region with entries in matrices of the decoder blocks, got one without: "
            "give another region"
        )
    made = {"operation": "fullest", "top": top, "directions": directions, "like": region.made}
    return Region(entries, region.base, made)


def random_slices(region: Region, top: float, model: nn.Module, seed: int) -> Region:
    """The control of :func:`fullest`: as many whole rows or columns of each matrix, at random.

    The same on every machine. Raises UserError as :func:`fullest`.
    """
    like = fullest(region, top, model)
    directions = like.made["directions"]
    entries = {}
    for matrix, here in matrix_entries(like, model):
        direction = directions[matrix.kind]
        other = matrix.features("columns" if direction == "rows" else "rows")
        total = here.numel // other
        drawn = draw_indices(total, here.count // other, seed, matrix.name)
        entries[matrix.name] = matrix.whole(direction, drawn)
    made = {"operation": "random_slices", "seed": seed, "like": like.made}
    return Region(entries, region.base, made)


@dataclass(frozen=True)
class Recurring:
    """A dimension of the residual stream, and where it is among the fullest."""

    dimension: int
    times: int
    kinds: list[str]
    layers: list[int]
    regions: list[str]


def recurring(
    regions: Mapping[str, Region], model: nn.Module, top: float = 0.01
) -> tuple[list[Recurring], int, float]:
    """How often each dimension of the residual stream is among the fullest ``top`` of a matrix.

    A matrix that reads from the stream is looked at by its columns, one that writes to it by its
    rows (:func:`residual_directions`, also of square ones); the rest have no such dimensions.
    Experts of one layer are one matrix: their entries are added up. Every matrix of every region
    counts once, where the region has entries in it.

    Returns:
        The dimensions that are among the fullest anywhere, most often first, ties to the lower
        one; in how many (matrix, region) each could be; how often each would be if the fullest of
        each matrix were any. Regions of one model share entries: this is no test of significance.

    Raises:
        UserError: ``top`` outside (0, 1]; a region that does not fit the model.
    """
    _check_top(top)
    directions = residual_directions(model)
    seen: dict[int, list[tuple[str, int, str]]] = defaultdict(list)
    possible, expected = 0, 0.0
    for name, region in regions.items():
        for matrix, entries in matrix_entries(region, model):
            if matrix.name not in directions:
                continue
            rows, columns = slice_counts(entries, matrix.input_dim)
            counts = rows if directions[matrix.name] == "rows" else columns
            size = counts.shape[-1]
            possible += 1
            expected += number_of_slices(size, top) / size
            for dimension in fullest_slices(counts.view(-1, size).sum(0), top).tolist():
                seen[dimension].append((matrix.kind, matrix.layer, name))
    found = [
        Recurring(
            dimension,
            len(places),
            list(dict.fromkeys(kind for kind, _, _ in places)),
            sorted({layer for _, layer, _ in places}),
            list(dict.fromkeys(name for _, _, name in places)),
        )
        for dimension, places in seen.items()
    ]
    found.sort(key=lambda one: (-one.times, one.dimension))
    return found, possible, expected


def _check_top(top: float) -> None:
    if not 0 < top <= 1:
        raise UserError(f"expected a top share above 0 and at most 1, got {top}")
