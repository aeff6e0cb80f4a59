"""Where regions lie: on which rows and columns they gather, which dimensions recur."""

from collections.abc import Mapping
from dataclasses import asdict
from statistics import fmean
from typing import Any

from torch import nn

from freezetrain.regions import Region, decoder_blocks
from freezetrain.regions.residual_stream import block_matrices, matrix_entries, residual_directions
from freezetrain.regions.slices import gini, recurring, share_of_fullest, slice_counts

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
    :func:`freezetrain.regions.slices.recurring`. ``directions``: matrix kind -> which of its
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


_TOP = 0.05  # share of the rows, or columns, that count as the fullest


def region_place(region: Region, control: Region, model: nn.Module) -> dict[str, Any]:
    """The region's facts for the report; ``control`` is a random region of the same size.

    The picture shows the matrix that is most concentrated, on rows or on columns, and that is one
    (not one for each of several experts); None where there is none. It is drawn as the layer
    multiplies, a row for an output feature, also where it is stored transposed.
    """
    tables = place(region, model, _TOP)
    rows, columns = tables["rows"], tables["columns"]
    even = means(place(control, model, _TOP))
    candidates = [one for one in matrix_entries(region, model) if len(one[0].shape) == 2]
    picture = None
    if candidates:
        matrix, entries = max(
            candidates,
            key=lambda one: max(table[str(one[0].layer)][one[0].kind] for table in (rows, columns)),
        )
        flat = entries.indices()
        stored = flat // matrix.shape[1], flat % matrix.shape[1]
        of_rows, of_columns = stored if matrix.input_dim == -1 else stored[::-1]
        picture = {
            "name": matrix.name.removesuffix(".weight"),
            "shape": [matrix.features("rows"), matrix.features("columns")],
            "rows": of_rows.tolist(),
            "columns": of_columns.tolist(),
        }
    return {
        "entries": region.count,
        "share": region.coverage(model).model,
        "layers": list(range(len(decoder_blocks(model)))),
        "matrices": list(dict.fromkeys(matrix.kind for matrix in block_matrices(model))),
        "rows": rows,
        "columns": columns,
        "even": {direction: even[direction] for direction in ("rows", "columns")},
        "picture": picture,
    }
