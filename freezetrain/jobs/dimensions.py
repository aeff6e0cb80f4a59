"""Where regions lie: on which rows and columns they gather, which dimensions recur."""

from collections.abc import Mapping
from dataclasses import asdict
from statistics import fmean
from typing import Any

from torch import nn

from freezetrain.regions import Region, decoder_blocks
from freezetrain.regions.concentration import gini, share_of_fullest, slice_counts
from freezetrain.regions.dimensions import recurring
from freezetrain.regions.matrices import block_matrices, matrix_entries
from freezetrain.regions.residual import residual_directions

Table = dict[str, dict[str, float]]  # layer -> matrix kind -> figure
FIGURES = ("rows", "columns", "gini_rows", "gini_columns")


def place(region: Region, model: nn.Module, top: float) -> dict[str, Table]:
    """How much the region gathers on few rows and columns of each matrix, ready for JSON.

    ``rows`` and ``columns``: the share of its entries in the fullest ``top`` of them;
    ``gini_rows`` and ``gini_columns``: how unevenly they lie over all, 0 (evenly) to 1. Rows are
    output features and columns input features, however a matrix is stored. A matrix of which the
    region has no entry is left out.
    """
    tables: dict[str, Table] = {figure: {} for figure in FIGURES}
    for matrix, entries in matrix_entries(region, model):
        for direction, counts in zip(
            ("rows", "columns"), slice_counts(entries, matrix.input_dim), strict=True
        ):
            for figure, value in (
                (direction, share_of_fullest(counts, top)),
                (f"gini_{direction}", gini(counts)),
            ):
                tables[figure].setdefault(str(matrix.layer), {})[matrix.kind] = value
    return tables


def means(tables: Mapping[str, Table]) -> dict[str, float]:
    """Mean of each figure over all matrices; 0 where there are none."""
    found = {}
    for figure, table in tables.items():
        values = [value for by_kind in table.values() for value in by_kind.values()]
        found[figure] = fmean(values) if values else 0.0
    return found


def dimensions(
    regions: Mapping[str, Region],
    model: nn.Module,
    top: float = 0.01,
    seed: int = 0,
    shown: int = 20,
) -> dict[str, Any]:
    """Where each of some regions lies, and what they have in common, ready for JSON.

    Of each region the tables of :func:`place`, their means, and ``even``: the means of a random
    region as large (drawn by ``seed``), for all of them together at the top. ``recurring``: the
    ``shown`` dimensions of the residual stream that are most often among the fullest ``top``, with
    how often that is ``possible``, and ``expected`` of any dimension by chance; see
    :func:`freezetrain.regions.dimensions.recurring`. ``directions``: matrix kind -> which of its
    slices run over these dimensions, ``columns`` where it reads from the stream and ``rows`` where
    it writes to it; a kind that does neither is left out.

    Raises:
        UserError: a region that does not fit the model; ``top`` outside (0, 1].
    """
    found, possible, expected = recurring(regions, model, top)
    matrices, directions = block_matrices(model), residual_directions(model)
    of_regions: dict[str, dict[str, Any]] = {}
    for name, region in regions.items():
        tables = place(region, model, top)
        even = means(place(region.random_like(seed), model, top))
        of_regions[name] = {**tables, "mean": means(tables), "even": even}
    return {
        "top": top,
        "matrices": list(dict.fromkeys(matrix.kind for matrix in matrices)),
        "directions": {m.kind: directions[m.name] for m in matrices if m.name in directions},
        "layers": list(range(len(decoder_blocks(model)))),
        "regions": of_regions,
        "even": {
            figure: fmean([one["even"][figure] for one in of_regions.values()])
            for figure in FIGURES
        },
        "recurring": [asdict(one) for one in found[:shown]],
        "possible": possible,
        "expected": expected,
    }
