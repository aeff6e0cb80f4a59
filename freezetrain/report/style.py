"""The look of the plots, and SVG whose colours follow the page: light or dark.

Colours are those of Okabe and Ito ("Color Universal Design", 2008); every series has a marker of
its own as well, so that nothing depends on colour alone.
"""

import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import StringIO
from itertools import cycle
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, MaxNLocator

from freezetrain.escaping import shortened, visible, visible_lines

INK, MUTED, GRID, CARD = "#1c2129", "#5a6472", "#e2e5ea", "#fefefd"

VERMILLION, BLUE, GREEN = "#d55e00", "#0072b2", "#009e73"

PURPLE, SKY, ORANGE = "#cc79a7", "#56b4e9", "#e69f00"

# In the page each of these becomes a CSS variable, so that one SVG serves light and dark.
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    CARD: "--card",
    VERMILLION: "--vermillion",
    BLUE: "--blue",
    GREEN: "--green",
    PURPLE: "--purple",
    SKY: "--sky",
    ORANGE: "--orange",
}

WIDE = 500  # px; a figure wider than this has room for panels side by side

LETTER = 6.6  # px, a letter's mean width in the page's fonts

FONT = 12.0  # px; figures are drawn at 72 dots an inch, so that a point is a pixel of the page


@dataclass(frozen=True)
class Mark:
    """How one series is drawn."""

    colour: str
    marker: str
    size: float
    filled: bool = True

    def options(self) -> dict[str, Any]:
        """Options of ``Axes.plot`` for the markers."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "markersize": self.size,
            "markeredgecolor": self.colour,
            "markeredgewidth": 1.5,
            "markerfacecolor": self.colour if self.filled else CARD,
        }


KNOWN = {
    "core": Mark(VERMILLION, "o", 7),
    "random": Mark(BLUE, "D", 7, filled=False),
    "bottom": Mark(GREEN, "x", 5),
    "top": Mark(VERMILLION, "o", 7),
    "plain": Mark(INK, "o", 8.5, filled=False),
    "core frozen": Mark(VERMILLION, "D", 4.5),
}

OTHERS = (
    Mark(BLUE, "s", 5.5),
    Mark(ORANGE, "^", 6.5),
    Mark(GREEN, "P", 6.5),
    Mark(PURPLE, "v", 6.5),
    Mark(INK, "X", 6.5),
    Mark(VERMILLION, "o", 6),
    Mark(SKY, "p", 7),
)

MOST = 2 * len(OTHERS)  # series that are told apart: filled, then hollow


def marks(names: Iterable[str]) -> dict[str, Mark]:
    """The mark of each of up to ``MOST`` series.

    Names that the quickstart does not know get others, in colours and shapes that are free.
    """
    names = list(names)
    known = [KNOWN[name] for name in names if name in KNOWN]
    colours, markers = {mark.colour for mark in known}, {mark.marker for mark in known}
    hollow = [replace(mark, filled=False) for mark in OTHERS]
    spare = sorted(OTHERS, key=lambda mark: mark.colour in colours or mark.marker in markers)
    free = cycle([*spare, *hollow])
    return {name: KNOWN.get(name) or next(free) for name in names}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many pixels of the page, with a transparent ground."""
    spacing = ConstrainedLayoutEngine(h_pad=5 / 72, w_pad=5 / 72)
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout=spacing)
    figure.patch.set_alpha(0)
    FigureCanvasSVG(figure)
    return figure


def dress(axes: Axes, grid: str = "x") -> None:
    """Quiet axes: no box, a faint grid, small muted numbers."""
    axes.patch.set_alpha(0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.grid(axis=grid, color=GRID, linewidth=1)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=MUTED, labelsize=FONT - 1)
    axes.xaxis.label.set(color=MUTED, size=FONT)
    axes.yaxis.label.set(color=MUTED, size=FONT)


def ticks(most: int, integer: bool = False) -> MaxNLocator:
    """At most so many steps between ticks, of 1, 2, 2.5 or 5 times a power of ten."""
    return MaxNLocator(most, integer=integer, steps=[1, 2, 2.5, 5, 10])


def percents(axis: Axis) -> None:
    """Shares between 0 and 1 as ``2.5%``."""
    axis.set_major_formatter(lambda share, _: f"{100 * share:.4g}%".replace("-", "−"))


def legend(figure: Figure, chosen: dict[str, Mark], line: bool = False) -> None:
    """A key above the plots, in as many columns as fit; names that are too long are cut."""
    width = figure.get_figwidth() * 72
    longest = int((width - 60) / LETTER)
    names = {name: shortened(visible(name), longest) for name in chosen}
    column = LETTER * max(map(len, names.values())) + 50
    handles = [
        Line2D([], [], label=names[name], linestyle="-" if line else "none", **mark.options())
        for name, mark in chosen.items()
    ]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=max(1, min(len(handles), int(width / column))),
        frameon=False,
        fontsize=FONT,
        labelcolor=INK,
        handletextpad=0.4 if line else 0.1,
        columnspacing=1.6,
        borderpad=0.2,
    )


@contextmanager
def as_data(figure: Figure) -> Iterator[None]:
    """Draw ``figure`` inside: its text is no mathematics, and what is unseen in it is shown.

    A letter that this machine's font lacks is a box in a PNG, and is itself in a page, where the
    reader's browser has a font.
    """
    for axes in figure.axes:
        for formatter in (axes.xaxis.get_major_formatter(), axes.yaxis.get_major_formatter()):
            if isinstance(formatter, FixedFormatter):
                formatter.seq = [visible(label) for label in formatter.seq]
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_text(visible_lines(text.get_text()))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def to_svg(figure: Figure, prefix: str) -> str:
    """The figure as an ``<svg>`` element for the page.

    Its text stays text, in the page's font; its colours follow the page's variables; its ids begin
    with ``prefix``, so that several fit in one page. The same figure gives the same string.
    """
    written = StringIO()
    with as_data(figure), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(written, format="svg", metadata={"Date": None}, transparent=False)
    root = ElementTree.fromstring(written.getvalue())
    _rewrite(root, prefix)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    return ElementTree.tostring(root, encoding="unicode")


def _rewrite(element: ElementTree.Element, prefix: str) -> None:
    # HTML knows SVG without namespaces; its parser would not take `ns0:path` for a path.
    element.tag = element.tag.rpartition("}")[2]
    element.tail = None
    attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    element.attrib.clear()
    for name, value in attributes.items():
        if name == "id":
            value = f"{prefix}-{value}"
        elif name == "href" and value.startswith("#"):
            value = f"#{prefix}-{value[1:]}"
        elif name == "style":
            value = re.sub(r"#[0-9a-f]{6}\b", _variable, value)
        element.set(name, value.replace("url(#", f"url(#{prefix}-"))
    for child in list(element):
        if child.tag.rpartition("}")[2] in ("metadata", "style"):
            element.remove(child)
        else:
            _rewrite(child, prefix)


def _variable(colour: re.Match[str]) -> str:
    name = VARIABLES.get(colour.group())
    return f"var({name}, {colour.group()})" if name else colour.group()
