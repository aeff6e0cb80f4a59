"""Figures of regions: what removing them costs, and where they lie."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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

NOTHING = "nothing"

Rises = Mapping[str, Mapping[str, float]]  # what is zeroed → language → rise of its loss


def rises(ablation: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Region zeroed → language → rise of the loss over nothing zeroed, in bits per byte."""
    before = ablation[NOTHING]
    return {
        name: {
            language: after[language]["bits_per_byte"] - figures["bits_per_byte"]
            for language, figures in before.items()
        }
        for name, after in ablation.items()
        if name != NOTHING
    }


def ablation_figure(results: Mapping[str, Any], width: float) -> Figure:
    """A row a language, largest rise under the first region on top; scored languages starred."""
    return rises_figure(rises(results["ablation"]), width, "bits", results["score_languages"])


def rises_figure(
    by_region: Rises,
    width: float,
    unit: str,
    starred: Sequence[str] = (),
    spreads: Mapping[str, Mapping[str, float | None]] | None = None,
) -> Figure:
    """A row a language, largest rise under the first region on top, in ``unit`` per byte.

    ``spreads``: lines of so much to either side of a region's rises.
    """
    first = next(iter(by_region.values()))
    order = sorted(first, key=lambda language: -first[language])
    labels = [language_label(code) + (" *" if code in starred else "") for code in order]
    figure = new_figure(width, 100 + ROW * len(order))
    axes = figure.add_subplot()
    chosen = marks(by_region)
    values = {name: [rise[code] for code in order] for name, rise in by_region.items()}
    around = {
        name: [_around(by_region[name][code], spread.get(code)) for code in order]
        for name, spread in (spreads or {}).items()
    }
    dot_rows(axes, labels, values, chosen, around)
    axes.tick_params(axis="x", labeltop=True)
    axes.set_xlabel(f"rise of the loss, {unit} per byte →")
    legend(figure, {f"{name} zeroed" if width > WIDE else name: chosen[name] for name in chosen})
    return figure


def _around(value: float, spread: float | None) -> tuple[float, float] | None:
    return None if spread is None else (value - spread, value + spread)


_MARKED = 16  # marks on a line

_MEAN = Mark(VERMILLION, "o", 5)


def layers_figure(
    shares: Mapping[str, Mapping[str, float]], width: float, *, title: str = ""
) -> Figure:
    """A line for each of ``shares``: series → layer, as written → share between 0 and 1.

    Of more series than can be told apart, all are thin lines of one colour and their mean a thick
    one. A layer that a series lacks is a gap.
    """
    layers = sorted({int(layer) for one in shares.values() for layer in one})
    series = {
        name: np.array([one.get(str(layer), np.nan) for layer in layers], dtype=float)
        for name, one in shares.items()
    }
    figure = new_figure(width, 280)
    axes = figure.add_subplot()
    dress(axes, grid="y")
    if len(series) <= MOST:
        chosen = marks(series)
        for name, values in series.items():
            _line(axes, layers, values, name, chosen[name])
    else:
        chosen = {f"mean of {len(series)}": _MEAN}
        for name, values in series.items():
            axes.plot(layers, values, color=MUTED, linewidth=0.8, alpha=0.5, label=name)
        (label,) = chosen
        _line(axes, layers, np.nanmean(list(series.values()), axis=0), label, _MEAN)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(ticks(10, integer=True))
    axes.yaxis.set_major_locator(ticks(6))
    percents(axes.yaxis)
    axes.set_xlabel("layer")
    axes.set_title(title, loc="left", size=FONT, color=INK)
    legend(figure, chosen, line=True)
    return figure


def _line(axes: Axes, layers: list[int], values: np.ndarray, name: str, mark: Mark) -> None:
    every = max(1, len(layers) // _MARKED)
    axes.plot(layers, values, linewidth=1.5, markevery=every, label=name, **mark.options())


def selectivity_figure(found: Mapping[str, Any], width: float) -> Figure:
    """Rise of each language's loss (columns) with each language's region zeroed (rows).

    Nats per byte; own languages are ringed.
    """
    return heat_maps(
        [_of_languages(found, rise_matrix(found), width)],
        width,
        label="rise of the loss, nats per byte",
        write=lambda value: signed(value, 2 if abs(value) < 9.995 else 1),
    )


def relative_selectivity_figure(found: Mapping[str, Any], width: float) -> Figure:
    """The same, each row as a share of its largest rise: 100% is the language hurt most."""
    rises = rise_matrix(found)
    largest = rises.max(axis=1, keepdims=True)
    # A region that hurts no language has no shares.
    relative = np.divide(rises, largest, out=np.full_like(rises, np.nan), where=largest > 0)
    return heat_maps(
        [_of_languages(found, np.clip(relative, 0, None), width)],
        width,
        label="share of the region’s largest rise",
        write=lambda value: f"{100 * value:.0f}%",
        percent=True,
        highest=1.0,
    )


def rise_matrix(found: Mapping[str, Any]) -> np.ndarray:
    """[regions, languages evaluated]"""
    return np.array(
        [[found["rise"][own][code] for code in found["evaluated"]] for own in found["languages"]]
    )


def _of_languages(found: Mapping[str, Any], values: np.ndarray, width: float) -> HeatMap:
    rows, columns = found["languages"], found["evaluated"]
    own = [(row, columns.index(code)) for row, code in enumerate(rows) if code in columns]
    return HeatMap("region of", _labels(rows, width), _codes(columns), values, "evaluated", own)


def jaccard_figure(found: Mapping[str, Any], width: float) -> Figure:
    """Entries in both regions over entries in either, of each region with each.

    The diagonal, where a region meets itself, is left empty.
    """
    values = np.array(found["jaccard"], dtype=float)
    np.fill_diagonal(values, np.nan)
    names = found["names"]
    one = HeatMap("", _labels(names, width), _codes(names), values)
    return heat_maps(
        [one],
        width,
        label="Jaccard index",
        write=lambda value: f"{value:.2f}",
    )


def kinds_figure(by_kind: Mapping[str, Mapping[str, float]], width: float) -> Figure:
    """Share of the weights of each kind of parameter (columns) that is in each region (rows)."""
    kinds = list(dict.fromkeys(kind for shares in by_kind.values() for kind in shares))
    values = np.array(
        [[shares.get(kind, np.nan) for kind in kinds] for shares in by_kind.values()], dtype=float
    )
    one = HeatMap("region", _labels(list(by_kind), width), _codes(kinds), values)
    return heat_maps(
        [one],
        width,
        label="share of the weights that is in the region",
        write=percent,
        percent=True,
    )


def _labels(names: Sequence[str], width: float) -> list[str]:
    return [language_label(name) for name in names] if width > WIDE else _codes(names)


def _codes(names: Sequence[str], longest: int = 18) -> list[str]:
    """The end of a long name tells it from others, as that of a path does."""
    return [name if len(name) <= longest else f"…{name[1 - longest :]}" for name in names]


def shares(region: Mapping[str, Any], direction: str) -> np.ndarray:
    """Matrix [matrices, layers] of ``region[direction]``; NaN where a layer lacks a matrix."""
    by_layer = region[direction]
    return np.array(
        [
            [np.nan if (share := layer.get(name)) is None else share for layer in columns]
            for name in region["matrices"]
            for columns in [[by_layer.get(str(number), {}) for number in region["layers"]]]
        ],
        dtype=float,
    ).reshape(len(region["matrices"]), len(region["layers"]))


def concentration_figure(region: Mapping[str, Any], width: float) -> Figure:
    """Share of each matrix's region entries in its fullest rows, and columns: ``region["top"]``."""
    fullest = f"fullest {percent(region['top'])} of"
    layers = [str(layer) for layer in region["layers"]]
    maps = [
        HeatMap(f"{fullest} {way}", region["matrices"], layers, shares(region, way), "layer")
        for way in ("rows", "columns")
    ]
    return heat_maps(
        maps,
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
    found = np.zeros(cells)
    np.add.at(found, (rows * cells[0] // shape[0], columns * cells[1] // shape[1]), 1)
    sizes = [
        np.bincount(np.arange(length) * parts // length, minlength=parts)
        for length, parts in zip(shape, cells, strict=True)
    ]
    return found / np.outer(*sizes)


def entries_figure(results: Mapping[str, Any], width: float) -> Figure:
    """Every entry a dot where the picture has room for every weight, else a shade."""
    picture = results["region"]["picture"]
    shape = (int(picture["shape"][0]), int(picture["shape"][1]))
    rows = np.asarray(picture["rows"], dtype=np.int64)
    columns = np.asarray(picture["columns"], dtype=np.int64)
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


def overlap_figures(found: Mapping[str, Any], suffix: str = "") -> dict[str, Draw]:
    """Jaccard of several regions; their shares by layer and kind, where these differ."""
    figures: dict[str, Draw] = {}
    if len(found.get("jaccard") or ()) > 1:
        figures[f"jaccard{suffix}"] = partial(jaccard_figure, found)
    if _differ(found["by_layer"]):
        title = "↑ share of the layer’s weights that is in the region"
        draw = partial(layers_figure, found["by_layer"], title=title)
        figures[f"layers{suffix}"] = draw
    if _differ(found["by_kind"]):
        figures[f"kinds{suffix}"] = partial(kinds_figure, found["by_kind"])
    return figures


def _differ(shares: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether a picture tells more than the one number that all shares are."""
    every = [share for of_region in shares.values() for share in of_region.values()]
    return bool(every) and max(every) - min(every) > _EVEN * max(every)
