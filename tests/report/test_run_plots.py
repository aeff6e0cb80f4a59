"""The plots of runs: what is drawn, against the figures."""

import numpy as np
import pytest
from made_runs import loss_at, make_run
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.text import Annotation

from freezetrain.errors import UserError
from freezetrain.evaluation.brake import Brake
from freezetrain.report.run import Rehearsed, Run
from freezetrain.report.run_plots import (
    course_figure,
    forgetting_figure,
    panel_figure,
    plane_figure,
    rehearsal_figure,
)
from freezetrain.report.style import MOST, marks, to_svg

WIDTHS = [350, 760]


def braked(name: str = "a") -> Run:
    """Limits of the mean and of German; it went back to step 20."""
    limits = {"mean": 5.0, "worst": 10.0, "de": 1.001 * loss_at(make_run(), 20, "de")}
    return make_run(name, brake=Brake(limits, "roll_back"))


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """Label → x and y of the lines that have one."""
    found = {str(line.get_label()): line for line in axes.lines}
    return {
        label: (list(np.asarray(line.get_xdata())), list(np.asarray(line.get_ydata())))
        for label, line in found.items()
        if not label.startswith("_")
    }


def dashed(axes: Axes) -> list[float]:
    """Heights of the dashed lines."""
    return [float(np.asarray(line.get_ydata())[0]) for line in axes.lines if line.is_dashed()]


def written(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts if isinstance(text, Annotation)]


def ring(axes: Axes) -> list[tuple[float, float]]:
    return [
        (float(np.asarray(line.get_xdata())[0]), float(np.asarray(line.get_ydata())[0]))
        for line in axes.lines
        if line.get_markersize() == 16 and line.get_marker() == "o"
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_line_of_rehearsal_for_each_run_that_rehearses(width: int) -> None:
    few = [Rehearsed(1, 0.5, 10), Rehearsed(3, 0.25, 30), Rehearsed(7, 0.125, 20)]
    many = [Rehearsed(step, float(step % 2), 1 + 2 * (step % 2)) for step in range(1, 4801)]
    runs = [make_run("a", rehearsed=few), make_run("b"), make_run("c", rehearsed=many)]
    (axes,) = rehearsal_figure(runs, width).axes
    drawn = lines(axes)
    assert drawn.keys() == {"a", "c"}
    assert drawn["a"] == ([1, 3, 7], [0.5, 0.25, 0.125])
    steps, means = drawn["c"]
    assert len(steps) == 48
    assert means == pytest.approx([0.75] * 48)  # by places: of 100 steps the odd ones have three
    assert steps == pytest.approx([100 * n + 50.5 for n in range(48)], abs=0.5)
    assert to_svg(rehearsal_figure(runs, width), "x").startswith("<svg")


@pytest.mark.parametrize("width", WIDTHS)
def test_plane_draws_every_evaluation_and_rings_the_model(width: int) -> None:
    runs = [make_run("a"), make_run("b", factor=0.5)]
    (axes,) = plane_figure(runs, width).axes
    drawn = lines(axes)
    for run in runs:
        changes = [evaluation.forgetting for evaluation in run.evaluations]
        gains, losses = drawn[run.name]
        assert gains == [change.target_gain for change in changes]
        assert losses == pytest.approx([change.mean for change in changes])
        assert (gains[0], losses[0]) == (0, 0)
    assert ring(axes) == [(gains[-1], losses[-1]) for gains, losses in (drawn["a"], drawn["b"])]
    assert dashed(axes) == []
    assert written(axes) == []


def test_plane_in_the_brakes_measure_with_its_limit_and_the_step_gone_back_to() -> None:
    run = braked()
    (axes,) = plane_figure([run], 760).axes
    gains, losses = lines(axes)["a"]
    expected = [100 * evaluation.forgetting.relative_mean for evaluation in run.evaluations]
    assert losses == pytest.approx(expected)
    assert dashed(axes) == [500]
    assert ring(axes) == [(gains[2], losses[2])]
    assert written(axes) == ["limit of a: 500%", "step 20"]


@pytest.mark.parametrize("measure", ["nats_per_byte", "relative"])
def test_plane_draws_the_intervals_of_the_model(measure) -> None:
    run = make_run("a", brake=Brake({"mean": 9.0}, measure=measure))
    (axes,) = plane_figure([run], 760).axes
    change = run.model.forgetting
    two = [line for line in axes.lines if len(np.asarray(line.get_xdata())) == 2]
    across = [tuple(np.asarray(line.get_xdata())) for line in two]
    up = [tuple(np.asarray(line.get_ydata())) for line in two]
    assert change.target_gain_interval in across
    expected = {
        "nats_per_byte": change.mean_interval,
        "relative": tuple(100 * end for end in change.relative_mean_interval),
    }
    assert expected[measure] in up


def test_plane_of_a_long_run_marks_some_of_it() -> None:
    run = make_run("a", steps=tuple(range(0, 1001)))
    (axes,) = plane_figure([run], 760).axes
    (line,) = (line for line in axes.lines if line.get_label() == "a")
    assert len(np.asarray(line.get_xdata())) == 1001
    assert line.get_markevery() == 26


def test_plane_needs_a_target() -> None:
    runs = [make_run("with"), make_run("without", target=None)]
    with pytest.raises(UserError, match="'without' has none"):
        plane_figure(runs, 760)


def test_plane_on_a_ground_of_its_own_draws_in_pixels() -> None:
    figure = plane_figure([make_run("a")], 600, ground="#ffffff")
    assert figure.patch.get_alpha() == 1
    assert to_rgba(figure.patch.get_facecolor()) == (1, 1, 1, 1)
    assert figure.get_figwidth() * figure.dpi == 600
    assert plane_figure([make_run("a")], 600).patch.get_alpha() == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_a_long_name_fits_into_the_figure(width: int) -> None:
    runs = [make_run("a name that goes on " * 6), make_run("b", factor=0.4), make_run("c")]
    figure = plane_figure(runs, width)
    figure.canvas.draw()
    (key,) = figure.legends
    box = key.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= width * figure.dpi / 72


@pytest.mark.parametrize("width", WIDTHS)
def test_course_draws_every_evaluation(width: int) -> None:
    runs = [make_run("a"), make_run("b", factor=0.5)]
    panels = course_figure(runs, width).axes
    for axes, part in zip(panels, ("mean", "worst", "gain"), strict=True):
        courses = [line for line in axes.lines if len(np.asarray(line.get_xdata())) > 2]
        drawn = sorted(list(np.asarray(line.get_ydata())) for line in courses)
        expected = sorted(
            [
                e.forgetting.target_gain if part == "gain" else e.loss(part).value
                for e in evaluations
            ]
            for evaluations in (run.evaluations for run in runs)
        )
        np.testing.assert_allclose(drawn, expected, rtol=1e-12)
        assert all(list(np.asarray(line.get_xdata())) == [*range(0, 61, 10)] for line in courses)


@pytest.mark.parametrize("width", WIDTHS)
def test_course_draws_limits_and_no_gain_without_a_target(width: int) -> None:
    mean, worst = course_figure([braked(), make_run("b", target=None)], width).axes
    assert dashed(mean) == [500]
    assert dashed(worst) == [1000]
    assert dashed(course_figure([braked()], width).axes[2]) == []


def panel(runs: list[Run], language: str, measure="nats_per_byte") -> Axes:
    chosen = marks(run.name for run in runs)
    figure = panel_figure(runs, language, chosen, measure, (0, 60), (-0.1, 0.3))
    return figure.axes[0]


def test_panel_draws_each_run_that_has_the_language() -> None:
    runs = [make_run("a"), make_run("b", factor=0.5), make_run("c", languages=("en", "es", "zh"))]
    axes = panel(runs, "de")
    drawn = lines(axes)
    assert set(drawn) == {"a", "b"}
    for run in runs[:2]:
        steps, values = drawn[run.name]
        assert steps == list(range(0, 61, 10))
        assert values == [evaluation.loss("de").value for evaluation in run.evaluations]
    assert axes.get_xlim() == (0, 60)
    assert axes.get_ylim() == (-0.1, 0.3)


def test_panel_shades_the_interval_and_draws_the_limit() -> None:
    run = braked()
    axes = panel([run], "de", "relative")
    (band,) = axes.collections
    corners = np.asarray(band.get_paths()[0].vertices)
    at_end = corners[corners[:, 0] == 60][:, 1]
    base = run.history.base.figures["de"].nll_per_byte
    ends = [100 * end / base for end in run.history.last.forgetting.languages["de"].interval]
    assert [at_end.min(), at_end.max()] == pytest.approx(ends)
    assert dashed(axes) == [100 * run.brake.limits["de"]]
    assert dashed(panel([run], "es", "relative")) == []
    assert not panel([make_run(noise=None)], "de").collections


@pytest.mark.parametrize("width", WIDTHS)
def test_dots_are_of_the_model_with_its_intervals(width: int) -> None:
    runs = [braked(), make_run("b", languages=("en", "de", "zh"))]
    above, below = forgetting_figure(runs, width).axes
    assert [label.get_text() for label in below.get_yticklabels()] == ["German de", "English en"]
    assert [label.get_text() for label in above.get_yticklabels()] == ["Chinese zh"]
    assert runs[0].model.step == 20
    change = runs[0].model.forgetting
    values, _ = lines(below)["a"]
    assert values == [change.languages[code].delta_nll_per_byte for code in ("de", "en")]
    assert lines(above)["a"][0] == [change.target_gain]
    drawn = [tuple(np.asarray(line.get_xdata())) for line in below.lines]
    assert all(change.languages[code].interval in drawn for code in ("de", "en"))
    assert change.target_gain_interval in [tuple(np.asarray(x.get_xdata())) for x in above.lines]


def test_dots_of_runs_with_several_targets_or_none_show_no_gain() -> None:
    runs = [make_run("a"), make_run("b", target="de")]
    (axes,) = forgetting_figure(runs, 760).axes
    assert {label.get_text() for label in axes.get_yticklabels()} == {"English en", "Spanish es"}
    assert len(forgetting_figure([make_run(target=None)], 760).axes) == 1


def test_drawing_changes_no_run_and_no_global_settings() -> None:
    import matplotlib

    run, settings = make_run(), dict(matplotlib.rcParams)
    before = run.to_dict()
    to_svg(forgetting_figure([run], 350), "x")
    assert run.to_dict() == before
    assert dict(matplotlib.rcParams) == settings


def test_series_differ_by_marker_and_by_colour() -> None:
    for names in (["core", "random", "bottom"], ["plain", "core frozen"], ["a", "b", "core", "c"]):
        chosen = marks(names).values()
        assert len({mark.marker for mark in chosen}) == len(names)
        assert len({mark.colour for mark in chosen}) == len(names)


def test_as_many_runs_as_are_allowed_look_different() -> None:
    chosen = marks(str(number) for number in range(MOST)).values()
    assert len({(mark.colour, mark.marker, mark.filled) for mark in chosen}) == MOST
    assert len({mark.colour for mark in list(chosen)[:7]}) == 7
    assert len({mark.marker for mark in list(chosen)[:7]}) == 7
