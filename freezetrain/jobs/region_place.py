"""Where a region lies, for the quickstart's page: rows and columns, and a picture of one matrix."""

from typing import Any

from torch import nn

from freezetrain.jobs.dimensions import means, place
from freezetrain.regions import Region, decoder_blocks
from freezetrain.regions.matrices import block_matrices, matrix_entries

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
