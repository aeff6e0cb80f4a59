"""How much a region concentrates on few rows or columns of a tensor."""

import torch
from torch import Tensor

from freezetrain.regions.entries import Entries


def concentration(entries: Entries, top: float = 0.05) -> tuple[float, float]:
    """Shares of the entries that lie in the fullest ``top`` of the rows, and of the columns.

    For a matrix; 1.0 means that all of them lie in so few rows (or columns), ``top`` is the least
    there can be. Zhang et al. 2024 (arXiv 2402.14700, section 5) see the core region concentrate
    on rows in attention output and MLP down projections, on columns in the others. 0.0 for an
    empty region. Rows are dimension 0, columns the last dimension; dimensions between count as
    rows.
    """
    if entries.count == 0:
        return 0.0, 0.0
    columns = entries.shape[-1]
    flat = entries.indices()
    rows = torch.bincount(flat // columns, minlength=entries.numel // columns)
    return _share_of_fullest(rows, top), _share_of_fullest(
        torch.bincount(flat % columns, minlength=columns), top
    )


def _share_of_fullest(counts: Tensor, top: float) -> float:
    fullest = max(1, int(top * len(counts) + 0.5))
    return counts.topk(fullest).values.sum().item() / counts.sum().item()
