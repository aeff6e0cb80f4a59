"""Rows and columns: on how few of them a region lies, and which recur from matrix to matrix."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from freezetrain.errors import UserError
from freezetrain.regions.entries import Entries, draw_indices
from freezetrain.regions.region import Region
from freezetrain.regions.residual_stream import Direction, matrix_entries, residual_directions


def concentration(entries: Entries, top: float = 0.05, input_dim: int = -1) -> tuple[float, float]:
    """Shares, 0 to 1, of the entries in the fullest ``top`` of the rows, and of the columns.

    ``top`` is a share of the rows, 0 to 1. 1.0 means that all entries lie in so few rows (or
    columns), ``top`` is the least there can be.
    Zhang et al. 2024 (arXiv 2402.14700, section 5) see the core region concentrate on rows in
    attention output and MLP down projections, on columns in the others. 0.0 for an empty region.
    Rows and columns as in :func:`slice_counts`. UserError for a vector.
    """
    rows, columns = slice_counts(entries, input_dim)
    return share_of_fullest(rows, top), share_of_fullest(columns, top)


def slice_counts(entries: Entries, input_dim: int = -1) -> tuple[Tensor, Tensor]:
    """Entries in each row and in each column: int64 [..., out] and [..., in].

    A row belongs to one output feature, a column to one input feature, however the matrix is
    stored: ``input_dim`` says whether input features run along its last dimension (-1, nn.Linear)
    or the one before (-2, Conv1D). Fused experts [E, ., .] have rows and columns of their own.
    UserError for a vector, which has neither.
    """
    if len(entries.shape) < 2:
        raise UserError(
            f"expected a matrix to count rows and columns of, got shape {list(entries.shape)}: "
            "leave vectors out"
        )
    *experts, height, width = entries.shape
    flat = entries.indices()
    line = flat // width  # place in all dimensions but the last
    expert_and_last = line // height * width + flat % width  # in all but the one before the last
    counts_by_line = torch.bincount(line, minlength=entries.numel // width)
    counts_by_last = torch.bincount(expert_and_last, minlength=entries.numel // height)
    lines, lasts = counts_by_line.view(*experts, height), counts_by_last.view(*experts, width)
    return (lines, lasts) if input_dim == -1 else (lasts, lines)


def share_of_fullest(counts: Tensor, top: float) -> float:
    """Share of all entries in the fullest ``top`` of the slices with ``counts`` [...], 0 to 1."""
    total = int(counts.sum())
    return int(counts.flatten()[fullest_slices(counts, top)].sum()) / total if total else 0.0


def fullest_slices(counts: Tensor, top: float) -> Tensor:
    """Flat indices, int64 sorted, of the fullest ``top`` of the slices with ``counts`` [...].

    At least one slice, ``int(top * n + 0.5)`` of n; ties go to the lower index, and a slice
    without an entry is never among them.
    """
    flat = counts.flatten()
    order = flat.argsort(descending=True, stable=True)[: number_of_slices(flat.numel(), top)]
    return order[flat[order] > 0].sort().values


def number_of_slices(count: int, top: float) -> int:
    """How many of ``count`` slices are its ``top``: at least one."""
    return max(1, int(top * count + 0.5))


def gini(counts: Tensor) -> float:
    """Gini coefficient of ``counts`` [...]: 0 if all are equal, (n - 1) / n if one has all.

    Half the mean difference between two of them over their mean, in its form for sorted values
    (Dasgupta, Sen and Starrett 1973). 0.0 where there is nothing.
    """
    values = counts.flatten().sort().values.double()
    total = values.sum().item()
    if not total:
        return 0.0
    n = len(values)
    ranks = torch.arange(1, n + 1, dtype=torch.float64)
    return (2 * (ranks * values).sum().item() / (n * total)) - (n + 1) / n


def denser_directions(region: Region, model: nn.Module, top: float = 0.01) -> dict[str, Direction]:
    """Matrix kind -> whether the region gathers more on its rows or on its columns.

    By the share of its entries in the fullest ``top`` of them, mean over layers; ties: rows.
    """
    excess: dict[str, float] = defaultdict(float)  # of the rows' shares over those of the columns
    for matrix, entries in matrix_entries(region, model):
        rows, columns = slice_counts(entries, matrix.input_dim)
        excess[matrix.kind] += share_of_fullest(rows, top) - share_of_fullest(columns, top)
    return {kind: "rows" if value >= 0 else "columns" for kind, value in excess.items()}


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
    for matrix, matrix_part in matrix_entries(region, model):
        direction = directions[matrix.kind]
        rows, columns = slice_counts(matrix_part, matrix.input_dim)
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
    for matrix, slices in matrix_entries(like, model):
        direction = directions[matrix.kind]
        length = matrix.features("columns" if direction == "rows" else "rows")  # of a slice
        drawn = draw_indices(slices.numel // length, slices.count // length, seed, matrix.name)
        entries[matrix.name] = matrix.whole(direction, drawn)
    made = {"operation": "random_slices", "seed": seed, "like": like.made}
    return Region(entries, region.base, made)


@dataclass(frozen=True)
class Recurring:
    """A dimension of the residual stream, and where it is among the fullest."""

    dimension: int
    times: int
    """Number of pairs of a matrix and a region."""
    kinds: list[str]
    """Of these matrices, as ``mlp.down_proj``."""
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
    dimensions = [
        Recurring(
            dimension,
            len(places),
            list(dict.fromkeys(kind for kind, _, _ in places)),
            sorted({layer for _, layer, _ in places}),
            list(dict.fromkeys(name for _, _, name in places)),
        )
        for dimension, places in seen.items()
    ]
    dimensions.sort(key=lambda recurring: (-recurring.times, recurring.dimension))
    return dimensions, possible, expected


def _check_top(top: float) -> None:
    if not 0 < top <= 1:
        raise UserError(f"expected a top share above 0 and at most 1, got {top}")
