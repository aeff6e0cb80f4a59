"""How much a region concentrates on few rows or columns of a weight matrix."""

import torch
from torch import Tensor

from freezetrain.errors import UserError
from freezetrain.regions.entries import Entries


def concentration(entries: Entries, top: float = 0.05, input_dim: int = -1) -> tuple[float, float]:
    """Shares of the entries that lie in the fullest ``top`` of the rows, and of the columns.

    1.0 means that all of them lie in so few rows (or columns), ``top`` is the least there can be.
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
    *lead, height, width = entries.shape
    flat = entries.indices()
    line = flat // width  # which slice along the last dimension, over all experts
    lines = torch.bincount(line, minlength=entries.numel // width).view(*lead, height)
    expert_and_place = line // height * width + flat % width
    across = torch.bincount(expert_and_place, minlength=entries.numel // height)
    across = across.view(*lead, width)
    return (lines, across) if input_dim == -1 else (across, lines)


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
