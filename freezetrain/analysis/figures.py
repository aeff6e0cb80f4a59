"""Figures of regions: what removing them costs, and where they lie."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from freezetrain.escaping import visible
from freezetrain.formats import language_label, percent, signed
from freezetrain.report.charts import ROW, HeatMap, dot_rows, heat_maps
from freezetrain.report.page import Draw
from freezetrain.report.style import (
    CARD,
    FONT,
    INK,
    MOST,
    MUTED,
    VERMILLION,
    WIDE,
    Mark,
    dress,
    legend,
    marks,
    new_figure,
    percents,
    ticks,
)

if TYPE_CHECKING:
    from freezetrain.analysis.dimensions import ByMatrix, MatrixPicture, RowsAndColumns
    from freezetrain.analysis.effects import Effect, Selectivity
    from freezetrain.analysis.overlap import Overlap


def effects_figure(
    effects: "Mapping[str, Effect]", width: float, starred: Sequence[str] = ()
) -> Figure:
    """A row a language: the rise of its loss in nats per byte with each region zeroed.

    The largest rise under the first region is on top; lines are spreads over random regions;
    languages in ``starred`` have a star.
    """
    first = next(iter(effects.values())).rises
    order = sorted(first, key=lambda language: -first[language])
    labels = [language_label(code) + (" *" if code in starred else "") for code in order]
    figure = new_figure(width, 100 + ROW * len(order))
    axes = figure.add_subplot()
    chosen = marks(effects)
    values = {name: [effect.rises[code] for code in order] for name, effect in effects.items()}
    spans = {name: [_span(effect, code) for code in order] for name, effect in effects.items()}
    dot_rows(axes, labels, values, chosen, spans)
    axes.tick_params(axis="x", labeltop=True)
    axes.set_xlabel("rise of the loss, nats per byte →")
    legend(figure, {f"{name} zeroed" if width > WIDE else name: chosen[name] for name in chosen})
    return figure


def _span(effect: "Effect", language: str) -> tuple[float, float] | None:
    rise, spread = effect.languages[language].rise, effect.languages[language].spread
    return None if spread is None else (rise - spread, rise + spread)


_MARKED = 16  # marks on a line

_MEAN = Mark(VERMILLION, "o", 5)


def layers_figure(
    shares: Mapping[str, Mapping[int, float]], width: float, *, title: str = ""
) -> Figure:
    """A line for each of ``shares``: series → layer → share between 0 and 1.

    Of more series than can be told apart, all are thin lines of one colour and their mean a thick
    one. A layer that a series lacks is a gap.
    """
    layers = sorted({layer for by_layer in shares.values() for layer in by_layer})
    series = {
        name: np.array([by_layer.get(layer, np.nan) for layer in layers], dtype=float)
        for name, by_layer in shares.items()
    }
    figure = new_figure(width, 280)
    axes = figure.add_subplot()
    dress(axes, grid="y")
    if len(series) <= MOST:
        chosen = marks(series)
        for name, values in series.items():
            _line(axes, layers, values, name, chosen[name])
    else:
        mean_label = f"mean of {len(series)}"
        chosen = {mean_label: _MEAN}
        for name, values in series.items():
            axes.plot(layers, values, color=MUTED, linewidth=0.8, alpha=0.5, label=name)
        _line(axes, layers, np.nanmean(list(series.values()), axis=0), mean_label, _MEAN)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(ticks(10, integer=True))
    axes.yaxis.set_major_locator(ticks(6))
    percents(axes.yaxis)
    axes.set_xlabel("layer")
    axes.set_title(visible(title), loc="left", size=FONT, color=INK)
    legend(figure, chosen, line=True)
    return figure


def _line(axes: Axes, layers: list[int], values: np.ndarray, name: str, mark: Mark) -> None:
    every = max(1, len(layers) // _MARKED)
    axes.plot(layers, values, linewidth=1.5, markevery=every, label=name, **mark.options())


def selectivity_figure(selectivity: "Selectivity", width: float) -> Figure:
    """Rise of each language's loss (columns) with each language's region zeroed (rows).

    Nats per byte; own languages are ringed.
    """
    return heat_maps(
        [_region_map(selectivity, _rise_matrix(selectivity), width)],
        width,
        label="rise of the loss, nats per byte",
        write=lambda value: signed(value, 2 if abs(value) < 9.995 else 1),
    )


def relative_selectivity_figure(selectivity: "Selectivity", width: float) -> Figure:
    """The same, each row as a share of its largest rise: 100% is the language hurt most."""
    rises = _rise_matrix(selectivity)
    largest = rises.max(axis=1, keepdims=True)
    # A region that hurts no language has no shares.
    relative = np.divide(rises, largest, out=np.full_like(rises, np.nan), where=largest > 0)
    return heat_maps(
        [_region_map(selectivity, np.clip(relative, 0, None), width)],
        width,
        label="share of the region’s largest rise",
        write=lambda value: f"{100 * value:.0f}%",
        percent=True,
        highest=1.0,
    )


def _rise_matrix(selectivity: "Selectivity") -> np.ndarray:
    """[regions, languages evaluated]"""
    languages = selectivity.evaluated
    return np.array(
        [[selectivity.rise[own][code] for code in languages] for own in selectivity.languages]
    )


def _region_map(selectivity: "Selectivity", values: np.ndarray, width: float) -> HeatMap:
    rows, columns = selectivity.languages, selectivity.evaluated
    own = [(row, columns.index(code)) for row, code in enumerate(rows) if code in columns]
    return HeatMap("region of", _labels(rows, width), _endings(columns), values, "evaluated", own)


def jaccard_figure(overlap: "Overlap", width: float) -> Figure:
    """Entries in both regions over entries in either, of each region with each.

    The diagonal, where a region meets itself, is left empty.
    """
    values = np.array(overlap.jaccard, dtype=float)
    np.fill_diagonal(values, np.nan)
    jaccard = HeatMap("", _labels(overlap.names, width), _endings(overlap.names), values)
    return heat_maps([jaccard], width, label="Jaccard index", write=lambda value: f"{value:.2f}")


def kinds_figure(by_kind: Mapping[str, Mapping[str, float]], width: float) -> Figure:
    """Share of the weights of each kind of parameter (columns) that is in each region (rows)."""
    kinds = list(dict.fromkeys(kind for shares in by_kind.values() for kind in shares))
    values = np.array(
        [[shares.get(kind, np.nan) for kind in kinds] for shares in by_kind.values()], dtype=float
    )
    shares_map = HeatMap("region", _labels(list(by_kind), width), _endings(kinds), values)
    return heat_maps(
        [shares_map],
        width,
        label="share of the weights that is in the region",
        write=percent,
        percent=True,
    )


def _labels(names: Sequence[str], width: float) -> list[str]:
    return [language_label(name) for name in names] if width > WIDE else _endings(names)


def _endings(names: Sequence[str], longest: int = 18) -> list[str]:
    """Long names cut to their ends, which tell them apart as those of paths do."""
    shown = map(visible, names)
    return [name if len(name) <= longest else f"…{name[1 - longest :]}" for name in shown]


def concentration_figure(
    place: "RowsAndColumns",
    layers: Sequence[int],
    matrices: Sequence[str],
    top: float,
    width: float,
) -> Figure:
    """Share of each matrix's region entries in the fullest ``top`` of its rows, and columns."""

    def heat_map(direction: str, shares: "ByMatrix") -> HeatMap:
        values = [
            [shares.get(layer, {}).get(matrix, np.nan) for layer in layers] for matrix in matrices
        ]
        title = f"fullest {percent(top)} of {direction}"
        return HeatMap(title, matrices, list(map(str, layers)), np.array(values), "layer")

    return heat_maps(
        [heat_map("rows", place.rows), heat_map("columns", place.columns)],
        width,
        label="share of the matrix’s region entries",
        write=lambda share: f"{100 * share:.0f}%",
        percent=True,
    )


_RED_GREEN_BLUE = tuple(int(VERMILLION[place : place + 2], 16) for place in (1, 3, 5))

_DOT = 2  # px, the smallest cell


def density(
    rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int], cells: tuple[int, int]
) -> np.ndarray:
    """Share of each cell's weights that are in the region, [cells[0], cells[1]], in [0, 1].

    The matrix of ``shape`` is cut into ``cells`` as evenly as whole weights allow.
    """
    entries = np.zeros(cells)
    np.add.at(entries, (rows * cells[0] // shape[0], columns * cells[1] // shape[1]), 1)
    sizes = [
        np.bincount(np.arange(length) * parts // length, minlength=parts)
        for length, parts in zip(shape, cells, strict=True)
    ]
    return entries / np.outer(*sizes)


def entries_figure(picture: "MatrixPicture", width: float) -> Figure:
    """Every entry a dot where the figure has room for every weight, else a shade."""
    shape = (picture.shape[0], picture.shape[1])
    rows = np.asarray(picture.rows, dtype=np.int64)
    columns = np.asarray(picture.columns, dtype=np.int64)
    beside = 60 if width > WIDE else 30
    across = width - 60 - beside
    down = float(np.clip(across * shape[0] / shape[1], 120, across))
    figure = new_figure(width, down + 100)
    grid = figure.add_gridspec(2, 2, width_ratios=[across, beside], height_ratios=[44, down])
    main = figure.add_subplot(grid[1, 0])
    cells = (min(shape[0], int(down / _DOT)), min(shape[1], int(across / _DOT)))
    shade = density(rows, columns, shape, cells)
    main.imshow(
        _image(shade),
        extent=(0, shape[1], shape[0], 0),
        aspect="auto",
        interpolation="none",
    )
    dress(main)
    main.grid(False)
    for spine in main.spines.values():
        spine.set(visible=True, color=MUTED, linewidth=0.8)
    main.set_xlabel(f"column (of {shape[1]:,})")
    main.set_ylabel(f"row (of {shape[0]:,})")
    per_row = density(rows, columns, shape, (cells[0], 1))[:, 0]
    per_column = density(rows, columns, shape, (1, cells[1]))[0]
    top = figure.add_subplot(grid[0, 0], sharex=main)
    right = figure.add_subplot(grid[1, 1], sharey=main)
    even = len(rows) / (shape[0] * shape[1])
    _profile(top, per_column, shape[1], even, "vertical")
    _profile(right, per_row, shape[0], even, "horizontal")
    return figure


def _image(shade: np.ndarray) -> np.ndarray:
    """RGBA, uint8: transparent where empty, so that the page's ground shows through."""
    image = np.zeros((*shade.shape, 4), dtype=np.uint8)
    image[..., :3] = _RED_GREEN_BLUE
    if shade.max() > 0:
        # The root lifts thinly filled cells out of the ground.
        image[..., 3] = np.round(255 * np.sqrt(shade / shade.max()))
    return image


def _profile(axes: Axes, values: np.ndarray, length: int, even: float, orientation: str) -> None:
    edges = np.linspace(0, length, len(values) + 1)
    axes.stairs(values, edges, orientation=orientation, fill=True, color=VERMILLION)  # type: ignore[arg-type]
    mark = axes.axhline if orientation == "vertical" else axes.axvline
    mark(even, color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
    dress(axes)
    axes.grid(False)
    axes.tick_params(labelbottom=False, labelleft=False)
    axes.set_facecolor(CARD)


_EVEN = 0.02  # shares that differ by less than so much of the largest one are alike


def overlap_figures(overlap: "Overlap", suffix: str = "") -> dict[str, Draw]:
    """Jaccard of several regions; their shares by layer and kind, where these differ."""
    figures: dict[str, Draw] = {}
    if len(overlap.names) > 1:
        figures[f"jaccard{suffix}"] = partial(jaccard_figure, overlap)
    if _differ(overlap.by_layer.values()):
        title = "↑ share of the layer’s weights that is in the region"
        figures[f"layers{suffix}"] = partial(layers_figure, overlap.by_layer, title=title)
    if _differ(overlap.by_kind.values()):
        figures[f"kinds{suffix}"] = partial(kinds_figure, overlap.by_kind)
    return figures


def _differ(shares_of_regions: Iterable[Mapping[Any, float]]) -> bool:
    """Whether a picture tells more than the one number that all shares are."""
    shares = [share for by_part in shares_of_regions for share in by_part.values()]
    return bool(shares) and max(shares) - min(shares) > _EVEN * max(shares)
