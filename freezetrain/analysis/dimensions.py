"""Where regions lie: on which rows and columns they gather, which dimensions recur."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from torch import nn

from freezetrain.analysis.effects import Effect
from freezetrain.formats import percent
from freezetrain.regions import Region, decoder_blocks
from freezetrain.regions.residual_stream import (
    Direction,
    block_matrices,
    matrix_entries,
    residual_directions,
)
from freezetrain.regions.slices import (
    Recurring,
    gini,
    recurring,
    share_of_fullest,
    slice_counts,
)
from freezetrain.tables import Column, Table

ByMatrix = dict[int, dict[str, float]]  # layer → kind of matrix → figure

FIGURES = ("rows", "columns", "gini_rows", "gini_columns")

DIRECTIONS: tuple[Direction, ...] = ("rows", "columns")


@dataclass(frozen=True, kw_only=True)
class RowsAndColumns:
    """Share of each matrix's region entries in its fullest rows, and in its fullest columns.

    Rows are output features and columns input features, however a matrix is stored. A matrix of
    which the region has no entry is left out.
    """

    rows: ByMatrix
    columns: ByMatrix

    def shares(self, direction: Direction) -> ByMatrix:
        return self.rows if direction == "rows" else self.columns


@dataclass(frozen=True, kw_only=True)
class Concentration(RowsAndColumns):
    """How much a region gathers on few rows and columns of each matrix."""

    gini_rows: ByMatrix
    """How unevenly entries lie over all rows, 0 (evenly) to 1."""
    gini_columns: ByMatrix
    mean: dict[str, float]
    """Of each of FIGURES over all matrices; 0 where there are none."""
    even: dict[str, float]
    """The same of a random region as large."""

    def kind_mean(self, figure: str, kind: str) -> float:
        """Mean of one of FIGURES over the layers with such a matrix; 0 where there is none."""
        values = [by_kind[kind] for by_kind in getattr(self, figure).values() if kind in by_kind]
        return fmean(values) if values else 0.0


@dataclass(frozen=True)
class ZeroedDimensions:
    """What zeroing the fullest rows and columns of a region does, beside as many random ones."""

    entries: int
    fullest: Effect
    random: list[Effect]


@dataclass(frozen=True)
class Dimensions:
    """Where each of some regions of one model lies, and what they have in common."""

    top: float
    """Share of the rows, or columns, that counts as the fullest."""
    matrices: list[str]
    """Kinds of matrices."""
    directions: dict[str, Direction]
    """Kind of matrix → which of its slices run over the dimensions of the residual stream:
    ``columns`` where it reads from the stream, ``rows`` where it writes to it. A kind that does
    neither is left out."""
    layers: list[int]
    regions: dict[str, Concentration]
    even: dict[str, float]
    """Each of FIGURES in random regions as large, mean over regions."""
    recurring: list[Recurring]
    """Dimensions of the stream that are most often among the fullest, see
    :func:`freezetrain.regions.slices.recurring`."""
    possible: int
    """In how many matrices of all regions a dimension could be among the fullest."""
    expected: float
    """In how many it is by chance."""
    ablated: ZeroedDimensions | None = None

    @property
    def shown(self) -> str:
        """The region that is shown: the core, or the first where none is called so."""
        return "core" if "core" in self.regions else next(iter(self.regions))


def find_dimensions(
    regions: Mapping[str, Region],
    model: nn.Module,
    top: float = 0.01,
    seed: int = 0,
    shown: int = 20,
) -> Dimensions:
    """``seed`` draws the random regions; so many dimensions that recur are ``shown``.

    Raises:
        UserError: a region that does not fit the model; ``top`` outside (0, 1].
    """
    dimensions, possible, expected = recurring(regions, model, top)
    matrices, directions = block_matrices(model), residual_directions(model)
    concentrations = {}
    for name, region in regions.items():
        figures = concentration_figures(region, model, top)
        even = means(concentration_figures(region.random_like(seed), model, top))
        concentrations[name] = Concentration(**figures, mean=means(figures), even=even)
    return Dimensions(
        top=top,
        matrices=list(dict.fromkeys(matrix.kind for matrix in matrices)),
        directions={m.kind: directions[m.name] for m in matrices if m.name in directions},
        layers=list(range(len(decoder_blocks(model)))),
        regions=concentrations,
        even={
            figure: fmean([region.even[figure] for region in concentrations.values()])
            for figure in FIGURES
        },
        recurring=dimensions[:shown],
        possible=possible,
        expected=expected,
    )


def concentration_figures(region: Region, model: nn.Module, top: float) -> dict[str, ByMatrix]:
    """Each of FIGURES of each matrix in which the region has entries."""
    figures: dict[str, ByMatrix] = {figure: {} for figure in FIGURES}
    for matrix, entries in matrix_entries(region, model):
        counts_of_slices = slice_counts(entries, matrix.input_dim)
        for direction, counts in zip(DIRECTIONS, counts_of_slices, strict=True):
            share = share_of_fullest(counts, top)
            figures[direction].setdefault(matrix.layer, {})[matrix.kind] = share
            unevenness = figures[f"gini_{direction}"]
            unevenness.setdefault(matrix.layer, {})[matrix.kind] = gini(counts)
    return figures


def means(figures: Mapping[str, ByMatrix]) -> dict[str, float]:
    """Mean of each figure over all matrices; 0 where there are none."""
    values = {
        figure: [value for by_kind in by_matrix.values() for value in by_kind.values()]
        for figure, by_matrix in figures.items()
    }
    return {figure: fmean(of_figure) if of_figure else 0.0 for figure, of_figure in values.items()}


FULLEST = 0.05  # share of the rows, or columns, that counts as the fullest in one region's facts


@dataclass(frozen=True)
class MatrixPicture:
    """The entries of a region in one matrix, as the layer multiplies: a row an output feature."""

    name: str
    shape: list[int]
    rows: list[int]
    """Of each entry."""
    columns: list[int]


@dataclass(frozen=True, kw_only=True)
class RegionPlace(RowsAndColumns):
    """Where one region lies; FULLEST of the rows, or columns, count as the fullest."""

    entries: int
    share: float
    """Of all weights."""
    layers: list[int]
    matrices: list[str]
    """Kinds of matrices."""
    even: dict[str, float]
    """Direction → mean share of a random region as large."""
    picture: MatrixPicture | None
    """Of the matrix that is most concentrated; None without one."""


def region_place(region: Region, control: Region, model: nn.Module) -> RegionPlace:
    """``control``: a random region as large.

    The picture shows a matrix that is one, not one for each of several experts, also where it is
    stored transposed.
    """
    figures = concentration_figures(region, model, FULLEST)
    rows, columns = figures["rows"], figures["columns"]
    even = means(concentration_figures(control, model, FULLEST))
    candidates = [
        (max(rows[matrix.layer][matrix.kind], columns[matrix.layer][matrix.kind]), matrix, entries)
        for matrix, entries in matrix_entries(region, model)
        if len(matrix.shape) == 2
    ]
    picture = None
    if candidates:
        _, matrix, entries = max(candidates, key=lambda candidate: candidate[0])
        flat = entries.indices()
        first, second = flat // matrix.shape[1], flat % matrix.shape[1]
        outputs, inputs = (first, second) if matrix.input_dim == -1 else (second, first)
        picture = MatrixPicture(
            matrix.name.removesuffix(".weight"),
            [matrix.features("rows"), matrix.features("columns")],
            outputs.tolist(),
            inputs.tolist(),
        )
    return RegionPlace(
        rows=rows,
        columns=columns,
        entries=region.count,
        share=region.coverage(model).model,
        layers=list(range(len(decoder_blocks(model)))),
        matrices=list(dict.fromkeys(matrix.kind for matrix in block_matrices(model))),
        even={direction: even[direction] for direction in DIRECTIONS},
        picture=picture,
    )


def location_table(
    shares: ByMatrix,
    direction: Direction,
    *,
    layers: list[int],
    matrices: list[str],
    top: float,
    even: float,
) -> Table:
    """Matrices × layers: ``shares`` in the fullest ``top`` of rows or columns."""

    def column(layer: int) -> Column:
        return Column(str(layer), lambda kind: shares.get(layer, {}).get(kind), percent)

    title = (
        f"Share of each matrix’s region entries in its fullest {percent(top)} of {direction}, by "
        f"layer; of a random region as large: {percent(even)}"
    )
    return Table(title, [Column("matrix", str, text=True), *map(column, layers)], matrices)
