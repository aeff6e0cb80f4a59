"""Where a region lies: how its entries gather on rows and columns of each matrix."""

from typing import Any

from torch import nn

from freezetrain.regions import Entries, Region, concentration, decoder_blocks

_TOP = 0.05  # share of the rows, or columns, that count as the fullest


def _matrices(region: Region, blocks: list[tuple[str, nn.Module]]) -> dict[str, dict[str, Entries]]:
    """Matrix kind (name within its block, without `.weight`) → layer number → entries."""
    found: dict[str, dict[str, Entries]] = {}
    for number, (block, _) in enumerate(blocks):
        for name, entries in region.items():
            if name.startswith(f"{block}.") and len(entries.shape) == 2:
                kind = name.removeprefix(f"{block}.").removesuffix(".weight")
                found.setdefault(kind, {})[str(number)] = entries
    return found


def _tables(
    matrices: dict[str, dict[str, Entries]],
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    rows: dict[str, dict[str, float]] = {}
    columns: dict[str, dict[str, float]] = {}
    for kind, by_layer in matrices.items():
        for layer, entries in by_layer.items():
            of_rows, of_columns = concentration(entries, _TOP)
            rows.setdefault(layer, {})[kind] = of_rows
            columns.setdefault(layer, {})[kind] = of_columns
    return rows, columns


def _mean(table: dict[str, dict[str, float]]) -> float:
    shares = [share for by_kind in table.values() for share in by_kind.values()]
    return sum(shares) / len(shares) if shares else 0.0


def region_place(region: Region, control: Region, model: nn.Module) -> dict[str, Any]:
    """The region's facts for the report; ``control`` is a random region of the same size.

    The picture shows the matrix that is most concentrated, on rows or on columns.
    """
    blocks = decoder_blocks(model)
    matrices = _matrices(region, blocks)
    rows, columns = _tables(matrices)
    control_rows, control_columns = _tables(_matrices(control, blocks))
    layer, kind = max(
        ((layer, kind) for layer, by_kind in rows.items() for kind in by_kind),
        key=lambda place: max(rows[place[0]][place[1]], columns[place[0]][place[1]]),
    )
    shown = matrices[kind][layer]
    flat = shown.indices()
    return {
        "entries": region.count,
        "share": region.coverage(model).model,
        "layers": list(range(len(blocks))),
        "matrices": list(matrices),
        "rows": rows,
        "columns": columns,
        "even": {"rows": _mean(control_rows), "columns": _mean(control_columns)},
        "picture": {
            "name": f"{blocks[int(layer)][0]}.{kind}",
            "shape": list(shown.shape),
            "rows": (flat // shown.shape[1]).tolist(),
            "columns": (flat % shown.shape[1]).tolist(),
        },
    }
