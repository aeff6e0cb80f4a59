"""The page of variants: parsed, and compared with the results that it was made from."""

import copy
import csv
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from made_compare import HELD_OUT, RATES, VARIANTS, make_compare, many_variants
from matplotlib.axes import Axes
from parsed_page import Page, number

from freezetrain.compare.figures import (
    compare_figures,
    frontier_figure,
    frontier_panel,
    main_variants,
    panels,
)
from freezetrain.compare.frontier import at_main_gain, compare_variants
from freezetrain.compare.page import render_compare, to_markdown, write_runs_csv
from freezetrain.compare.sentences import recommended, seen, summary

Results = dict[str, Any]


def failed(results: Results, variant: str, seed: int) -> Results:
    """All runs of a variant and seed have failed."""
    results = copy.deepcopy(results)
    for run in results["runs"]:
        if (run["variant"], run["seed"]) == (variant, seed):
            run |= dict.fromkeys(("gain", "mean", "worst"))
            run |= {"failed": "loss became NaN at step 12", "languages": {}}
    results["comparison"] = compare_variants(results["runs"])
    return results


@pytest.fixture(scope="module")
def results() -> Results:
    return failed(make_compare(), "random 5%", 1)


@pytest.fixture(scope="module")
def source(results: Results, tmp_path_factory: pytest.TempPathFactory) -> str:
    before = copy.deepcopy(results)
    path = tmp_path_factory.mktemp("compare") / "report.html"
    render_compare(results, path)
    assert results == before
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_loads_nothing_and_refers_to_what_is_there(source: str, page: Page) -> None:
    assert not re.search("https?:|@import", source)
    assert not {"link", "iframe", "object", "img"} & {tag for tag, _ in page.tags}
    assert not any("src" in attributes for _, attributes in page.tags)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {str(a["href"])[1:] for _, a in page.tags if str(a.get("href", "")).startswith("#")}
    named = {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a}
    assert links | named | set(re.findall(r"url\(#([^)]+)\)", source)) <= set(ids)


def test_the_table_at_equal_gain_holds_every_figure(results: Results, page: Page) -> None:
    found, comparison = at_main_gain(results["comparison"]), results["comparison"]
    _, heads, *rows = page.table("Loss of the held-out languages where each")
    notes = page.notes_of("Loss of the held-out languages where each")[2:]
    names = [row[0] for row in rows]
    assert names[-1] == "random 5%"  # a seed failed
    losses = [found[name]["mean"]["loss"] for name in names[:-1]]
    assert losses == sorted(losses)
    assert set(names) == set(VARIANTS)
    for row, note in zip(rows, notes, strict=True):
        assert len(row) == len(heads)
        for first, measure in ((1, "mean"), (4, "worst")):
            entry = found[row[0]][measure]
            assert number(row[first]) == pytest.approx(entry["loss"], abs=6e-5)
            ends = [number(end) for end in note[first].split(" to ")]
            assert ends == pytest.approx(entry["interval"], abs=6e-5)
            if row[0] == "plain":
                assert row[first + 1 : first + 3] == ["–", "–"]
                continue
            assert number(row[first + 1][:-1]) == pytest.approx(100 * entry["relative"], abs=0.51)
            ends = [number(end[:-1]) for end in note[first + 1].split(" to ")]
            assert ends == pytest.approx([100 * e for e in entry["relative_interval"]], abs=0.51)
            assert row[first + 2].replace("\xa0", " ").lstrip("▲▼ ") == entry["verdict"]
        facts = results["variants"][row[0]]
        assert float(row[7]) == pytest.approx(found[row[0]]["mean"]["learning_rate"], rel=0.05)
        assert row[8] == ("–" if facts["frozen"] is None else "42.3%")
        assert ("scores" in row[9], "5% replay" in row[9]) == (
            facts["reads_old"],
            bool(facts["trained_on_old"]),
        )
        time = comparison["variants"][row[0]]["relative_seconds"]
        assert float(row[10][1:]) == pytest.approx(time, abs=0.006)


def test_other_tables_hold_every_figure(results: Results, page: Page) -> None:
    _, _, *rows = page.table("Mean loss at every gain")
    for row in rows:
        for place, one in enumerate(results["comparison"]["at"]):
            entry = one["variants"][row[0]]["mean"]
            cell = row[1 + 3 * place]
            if entry["loss"] is None:
                assert cell == "–"
            else:
                assert number(cell) == pytest.approx(entry["loss"], abs=6e-5)
    rows = page.table("Every run’s model")[1:]
    assert len(rows) == len(results["runs"])
    for row, run in zip(rows, results["runs"], strict=True):
        assert row[0] == run["variant"]
        assert (float(row[1]), int(row[2])) == (run["learning_rate"], run["seed"])
        if run["failed"]:
            assert row[3:7] == ["–"] * 4
        else:
            assert number(row[3]) == pytest.approx(run["gain"], abs=6e-5)
            assert number(row[4]) == pytest.approx(run["mean"], abs=6e-5)
            assert row[6] == "German (de)"
    rows = page.table("Runs that failed")[1:]
    assert [row[0] for row in rows] == ["random 5%"] * len(RATES)
    assert {row[3] for row in rows} == {"loss became NaN at step 12"}
    heads, *rows = page.table("Loss of each language at a gain")
    assert [re.sub(r".*\((.*)\)", r"\1", row[0]) for row in rows] == list(HELD_OUT)
    for place, name in enumerate(heads[1:], 1):
        mean = fmean(number(row[place]) for row in rows)
        assert mean == pytest.approx(
            at_main_gain(results["comparison"])[name]["mean"]["loss"], abs=1e-4
        )
    changes = {row[0]: row[1:] for row in page.table("What each variant changes")[1:]}
    assert changes["replay 5%"] == ["–", "replay.share: 0.05"]
    assert changes["vocabulary"][0] == "vocabulary"
    assert ["train.optimization.max_steps", "150"] in page.table("Settings")


def test_sentences_say_who_is_better_worse_or_neither(results: Results, page: Page) -> None:
    said = seen(results)
    assert said[0].startswith(
        "4 variants of 6 lose less on average than “plain” at the same gain, beyond noise: "
        "“everything” (−78%), “replay 5%” (−56%), “columns + vocabulary” (−51%) and “vocabulary”"
    )
    assert said[0].endswith("by chance alone 0.2 of 6 comparisons would look so.")
    assert said[1:] == [
        "No difference to “plain” beyond noise: “core 1%” (−4%).",
        "Worse than “plain”: “clamp” (+56%).",
        "Not compared: “random 5%” (a seed has no run that gave a result).",
        "3 runs failed and are left out, of “random 5%”; a table below says why.",
    ]
    none, some, training = recommended(results)
    assert none.startswith("Without any text of the languages to keep: “vocabulary” at a learning ")
    assert "“columns + vocabulary” at a learning rate of" in some
    assert "“everything” at a learning rate of 0.0013; on average 78% less is lost" in training
    assert training.endswith("with “plain” (95% interval: 76 to 80%).")
    assert all(line in page.text for line in summary(results))


def changed(results: Results, **factors: tuple[float, float]) -> Results:
    """Mean and worst loss of variants times a factor each."""
    results = copy.deepcopy(results)
    for run in results["runs"]:
        if run["variant"] in factors and not run["failed"]:
            mean, worst = factors[run["variant"]]
            run["mean"] *= mean
            run["worst"]["delta_nll_per_byte"] *= worst
    results["comparison"] = compare_variants(results["runs"])
    return results


def test_better_on_average_and_worse_for_the_worst_is_said(results: Results) -> None:
    bad = changed(results, vocabulary=(1.0, 4.0))
    (line,) = (line for line in seen(bad) if line.startswith("Better on average, but"))
    assert "“vocabulary” (+1" in line
    assert "The language that loses most loses more, though." in recommended(bad)[0]


def test_where_nothing_is_better_plain_is_recommended() -> None:
    found = make_compare({name: VARIANTS[name] for name in ("plain", "clamp", "random 5%")})
    assert seen(found)[0].startswith("No variant loses less on average than “plain” at the same")
    (line,) = recommended(found)
    assert line.startswith("No variant that was run with two seeds or more is better than “plain”")
    assert (
        "use “plain” itself, at a learning rate of 0.001 for this gain, or at a lower one" in line
    )


def test_a_variant_with_no_old_text_that_is_as_good_within_noise_is_named() -> None:
    made = {name: VARIANTS[name] for name in ("plain", "vocabulary")}
    made["scored"] = (0.69, 0.95, "columns", 0.0, True)
    _, some, training = recommended(make_compare(made))
    assert "Not told apart from it: “vocabulary”." in some
    assert training == "With such text to train on as well, nothing better was found."


def test_one_seed_and_what_is_not_reached() -> None:
    made = dict(VARIANTS)
    made |= {"weak": (0.9, 0.2, None, 0.0, False), "strong": (0.9, 3.0, None, 0.0, False)}
    found = make_compare(made, seeds=(5,))
    said = seen(found)
    assert said[0].startswith("Run with one seed, so that noise is not known: “everything” (−7")
    assert "Not compared: “weak” (not every seed gains so much" in said[1]
    assert "Not compared: “strong” (not every seed gains so little" in said[2]
    assert recommended(found)[0].startswith("Nothing is recommended: with one seed a difference")


def test_without_a_gain_in_common_the_page_says_why(tmp_path: Path) -> None:
    results = make_compare(rates=(1e-3,))
    assert seen(results) == [
        "Nothing can be compared at equal gain: 'plain' was run at one learning rate, and a curve "
        "needs two or more."
    ]
    render_compare(results, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert seen(results)[0] in page.text
    assert not any("equal gain" in title or "a gain of" in title for title in page.tables)
    assert len(page.table("Every run’s model")) == 1 + len(results["runs"])
    assert "Nothing can be compared" in to_markdown(results)


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


def means(results: Results, name: str, of: Any) -> list[float]:
    return [
        fmean(of(run) for run in results["runs"]
              if (run["variant"], run["learning_rate"]) == (name, rate) and not run["failed"])
        for rate in RATES
    ]  # fmt: skip


def worst(run: Results) -> float:
    return run["worst"]["delta_nll_per_byte"]


@pytest.mark.parametrize("width", [350, 760])
def test_the_figure_draws_the_mean_over_seeds_and_every_run(results: Results, width: int) -> None:
    names = main_variants(results)
    assert (names[0], names[1], len(names)) == ("plain", "everything", 7)
    figure = frontier_figure(results, names, width, ground="#ffffff")
    assert figure.patch.get_alpha() == 1
    for axes, of in zip(figure.axes, (lambda run: run["mean"], worst), strict=True):
        assert axes.get_yscale() == "log"
        drawn = lines(axes)
        for name, (across, up, thickness) in zip(names, drawn, strict=True):
            assert across == pytest.approx(means(results, name, lambda run: run["gain"]))
            assert up == pytest.approx(means(results, name, of))
            assert (thickness > 2) == (name == "plain")
        single = [line for line in axes.lines if line.get_linestyle() == "None"]
        there = sum(run["variant"] in names and not run["failed"] for run in results["runs"])
        assert sum(len(np.asarray(line.get_xdata())) for line in single) == there
        (dashed,) = (line for line in axes.lines if line.is_dashed())
        assert np.asarray(dashed.get_xdata())[0] == results["comparison"]["gain"]


def test_a_loss_that_is_not_above_0_has_a_linear_scale() -> None:
    results = changed(make_compare(), everything=(-1.0, 1.0))
    mean, of_worst = frontier_figure(results, main_variants(results), 760).axes
    assert (mean.get_yscale(), of_worst.get_yscale()) == ("linear", "log")
    (axes,) = frontier_panel(results, ["clamp"]).axes
    assert axes.get_yscale() == "linear"


def test_panels_take_five_each_and_share_their_scales() -> None:
    results = make_compare(many_variants(13), noise=0.0)
    groups = panels(results)
    assert [len(group) for group in groups] == [5, 5, 2]
    assert [name for group in groups for name in group] == list(results["variants"])[1:]
    few = {name: VARIANTS[name] for name in list(VARIANTS)[:6]}
    assert panels(make_compare(few)) == []
    axes = [frontier_panel(results, group).axes[0] for group in groups]
    assert len({(one.get_xlim(), one.get_ylim()) for one in axes}) == 1
    for one, group in zip(axes, groups, strict=True):
        reference, *others = lines(one)
        assert reference[1] == pytest.approx(means(results, "plain", lambda run: run["mean"]))
        for name, (_, up, _) in zip(group, others, strict=True):
            assert up == pytest.approx(means(results, name, lambda run: run["mean"]))
            assert one.get_ylim()[0] < min(up) < max(up) < one.get_ylim()[1]
    assert list(compare_figures(results)) == ["frontier"]


def test_runs_as_csv_and_the_table_as_markdown(results: Results, tmp_path: Path) -> None:
    write_runs_csv(results, tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, run in zip(rows, results["runs"], strict=True):
        assert row["variant"] == run["variant"]
        assert float(row["learning_rate"]) == run["learning_rate"]
        if run["failed"]:
            assert (row["gain"], row["delta_de"], row["failed"]) == ("", "", run["failed"])
        else:
            assert float(row["gain"]) == run["gain"]
            assert (row["worst_language"], float(row["worst"])) == ("de", worst(run))
            assert [float(row[f"delta_{code}"]) for code in HELD_OUT] == list(
                run["languages"].values()
            )
    written = to_markdown(results).splitlines()
    head, _, first = (re.split(r"(?<!\\) \| ", line.strip("| ")) for line in written[:3])
    cells = dict(zip(head, first, strict=True))
    entry = at_main_gain(results["comparison"])["everything"]["mean"]
    assert cells["variant"] == "everything"
    assert number(cells["mean loss, nats/byte"].split(" (")[0]) == pytest.approx(
        entry["loss"], abs=6e-5
    )
    assert cells["mean loss, beyond noise"] == "▼ better"
    assert len([line for line in written if line.startswith("| ")]) == 2 + len(VARIANTS)
    odd = make_compare({"plain": VARIANTS["plain"], "a | b": VARIANTS["vocabulary"]})
    assert "| a \\| b |" in to_markdown(odd)


@pytest.mark.filterwarnings("error")
def test_odd_names_are_escaped_and_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    odd = "<b>&\"'$x_1$"
    results = make_compare({"plain": VARIANTS["plain"], odd: VARIANTS["vocabulary"]})
    results["model"] |= {"name": "</title><script>alert(1)</script>"}
    results["machine"] = "<i>"
    for name in ("a.html", "b.html"):
        render_compare(results, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.tags].count("script") == 1  # sorts the tables
    assert not {"b"} & {tag for tag, _ in page.tags}
    assert odd in [row[0] for row in page.table("Loss of the held-out languages")]
