"""One row a language, one dot a series: what the ablation and the forgetting plot share."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from freezetrain.report.style import FONT, GRID, INK, MUTED, WIDE, Mark, dress, ticks

ROW = 18  # px a language


def dot_rows(
    axes: Axes,
    labels: Sequence[str],
    values: Mapping[str, Sequence[float]],
    chosen: Mapping[str, Mark],
    intervals: Mapping[str, Sequence[Sequence[float] | None]] | None = None,
) -> None:
    """Draw ``values`` (series → one number a row) downwards, with a line over each row's span.

    ``intervals``, as ``values``, are lines in the colours of their series.
    """
    dress(axes)
    places = range(len(labels))
    for place in places:
        ends = [series[place] for series in values.values()]
        axes.plot(
            [min(0.0, *ends), max(0.0, *ends)], [place, place], color=GRID, linewidth=1, zorder=1
        )
        axes.plot(
            [min(ends), max(ends)], [place, place], color=MUTED, linewidth=1.5, alpha=0.5, zorder=2
        )
    for name, spans in (intervals or {}).items():
        for place, span in enumerate(spans):
            if span is not None:
                colour = chosen[name].colour
                axes.plot(span, [place, place], color=colour, linewidth=1.2, zorder=2.5)
    for order, (name, series) in enumerate(values.items()):
        axes.plot(
            series, places, linestyle="none", label=name, zorder=3 + order, **chosen[name].options()
        )
    axes.axvline(0, color=MUTED, linewidth=1, zorder=1.5)
    axes.set_yticks(list(places), labels)
    axes.tick_params(axis="y", labelcolor=INK, labelsize=FONT)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.margins(x=0.04)
    wide = axes.get_figure(root=True).get_figwidth() * 72 > WIDE  # type: ignore[union-attr]
    axes.xaxis.set_major_locator(ticks(8 if wide else 4))
