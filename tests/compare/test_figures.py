"""The figures of a comparison: what is drawn is what the runs gave."""

from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from made_comparison import RATES, VARIANTS, make_compare, many_variants
from matplotlib.axes import Axes

from freezetrain.compare.figures import (
    compare_figures,
    frontier_figure,
    frontier_panel,
    main_variants,
    panels,
)


@pytest.fixture(scope="module")
def results():
    """All runs of one variant and seed have failed."""

    def fail(run):
        lost = (run.variant, run.seed) == ("random 5%", 1)
        return replace(run, gain=None, mean=None, worst=None, failed="NaN") if lost else run

    return make_compare(change=fail)


def lines(axes: Axes) -> list[tuple[list[float], list[float], float]]:
    """x, y and width of the lines that join points."""
    return [
        (
            list(np.asarray(line.get_xdata())),
            list(np.asarray(line.get_ydata())),
            line.get_linewidth(),
        )
        for line in axes.lines
        if line.get_linestyle() == "-" and len(np.asarray(line.get_xdata())) == len(RATES)
    ]


def means(results, name: str, measure: str) -> list[float]:
    return [
        fmean(
            getattr(run, measure)
            for run in results.runs
            if (run.variant, run.learning_rate) == (name, rate) and not run.failed
        )
        for rate in RATES
    ]


@pytest.mark.parametrize("width", [350, 760])
def test_the_figure_draws_the_mean_over_seeds_and_every_run(results, width: int) -> None:
    names = main_variants(results)
    assert (names[0], names[1], len(names)) == ("plain", "everything", 7)
    figure = frontier_figure(results, names, width, ground="#ffffff")
    assert figure.patch.get_alpha() == 1
    for axes, measure in zip(figure.axes, ("mean", "worst"), strict=True):
        assert axes.get_yscale() == "log"
        drawn = lines(axes)
        for name, (across, up, thickness) in zip(names, drawn, strict=True):
            assert across == pytest.approx(means(results, name, "gain"))
            assert up == pytest.approx(means(results, name, measure))
            assert (thickness > 2) == (name == "plain")
        single = [line for line in axes.lines if line.get_linestyle() == "None"]
        there = sum(run.variant in names and not run.failed for run in results.runs)
        assert sum(len(np.asarray(line.get_xdata())) for line in single) == there
        (dashed,) = (line for line in axes.lines if line.is_dashed())
        assert np.asarray(dashed.get_xdata())[0] == results.comparison.gain


def test_a_loss_that_is_not_above_0_has_a_linear_scale() -> None:
    def lost_nothing(run):
        return replace(run, mean=-run.mean) if run.variant == "everything" else run

    results = make_compare(change=lost_nothing)
    mean, of_worst = frontier_figure(results, main_variants(results), 760).axes
    assert (mean.get_yscale(), of_worst.get_yscale()) == ("linear", "log")
    (axes,) = frontier_panel(results, ["clamp"]).axes
    assert axes.get_yscale() == "linear"


def test_panels_take_five_each_and_share_their_scales() -> None:
    results = make_compare(many_variants(13), noise=0.0)
    groups = panels(results)
    assert [len(group) for group in groups] == [5, 5, 2]
    assert [name for group in groups for name in group] == list(results.variants)[1:]
    few = {name: VARIANTS[name] for name in list(VARIANTS)[:6]}
    assert panels(make_compare(few)) == []
    axes = [frontier_panel(results, group).axes[0] for group in groups]
    assert len({(one.get_xlim(), one.get_ylim()) for one in axes}) == 1
    for one, group in zip(axes, groups, strict=True):
        reference, *others = lines(one)
        assert reference[1] == pytest.approx(means(results, "plain", "mean"))
        for name, (_, up, _) in zip(group, others, strict=True):
            assert up == pytest.approx(means(results, name, "mean"))
            assert one.get_ylim()[0] < min(up) < max(up) < one.get_ylim()[1]
    assert list(compare_figures(results)) == ["frontier"]
