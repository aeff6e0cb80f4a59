"""The figures of the paper's page: which there are, and the numbers that they hold."""

from typing import Any

import pytest
from made_paper import make_paper

from freezetrain.paper.figures import paper_figures
from freezetrain.paper.results import Overlaps


def series(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {
        str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


def test_every_part_has_its_figures():
    results = make_paper(layers=3)
    assert set(paper_figures(results)) == {
        "removal-1", "removal-3", "removal-5", "ratios", "weights-zero", "weights-scale",
        "concentration", "dimensions-removed", "selectivity", "selectivity-relative", "halves",
        "jaccard-languages", "jaccard-samples", "jaccard-methods", "jaccard-whole-model",
        "layers-whole-model", "kinds-whole-model",
    }  # fmt: skip
    results.ablation = results.dimensions = results.selectivity = None
    results.weights, results.overlap = {}, Overlaps()
    assert paper_figures(results) == {}


def test_ratios_that_are_close_have_pictures_of_their_own():
    close = make_paper(layers=1, ratios=(0.012, 0.0125, 0.105))
    names = {name for name in paper_figures(close) if name.startswith("removal")}
    assert names == {"removal-1.2", "removal-1.25", "removal-10.5"}


def test_ratios_and_weights_and_halves():
    results = make_paper(layers=3)
    figures = paper_figures(results)
    drawn = series(figures["ratios"](760).axes[0])
    for kind in ("top", "random", "bottom"):
        means = [effects[kind].mean_rise for effects in results.removed.values()]
        assert drawn[kind] == ([0.01, 0.03, 0.05], means)
    drawn = series(figures["weights-zero"](350).axes[0])
    changed = results.weights["zero"]
    for label, damages in (("chosen", changed.weights), ("random", changed.random)):
        assert drawn[label] == (list(range(1, 11)), [damage.mean_rise for damage in damages])
    halves = results.overlap.halves
    drawn = series(figures["halves"](350).axes[0])
    assert drawn["observed"][0] == sorted(halves.jaccard, reverse=True)
    assert drawn["by chance"][0] == halves.expected


def test_whole_dimensions_beside_the_mean_of_random_ones():
    results = make_paper(layers=3)
    zeroed = results.dimensions.ablated
    (axes,) = paper_figures(results)["dimensions-removed"](760).axes
    order = [label.get_text().split()[-1] for label in axes.get_yticklabels()]
    means = [sum(draw.rises[code] for draw in zeroed.random) / 3 for code in order]
    assert series(axes)["random"][0] == pytest.approx(means)
    assert series(axes)["fullest"][0] == [zeroed.fullest.rises[code] for code in order]
