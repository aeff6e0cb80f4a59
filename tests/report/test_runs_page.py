"""The page of runs: what stands in its tables, lines and panels, against the figures."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import CODES, REGION, generation, make_run, texts, two
from parsed_page import Page, number

from freezetrain.errors import UserError
from freezetrain.evaluation.brake import Brake
from freezetrain.evaluation.continuations import generation_tables
from freezetrain.report.run import Rehearsed, Run
from freezetrain.report.runs_page import brake_line, measured, model_line, render_runs

BRAKED, FROZEN = two()


def page(runs: Sequence[Run], folder: Path) -> tuple[Page, str]:
    render_runs(runs, folder / "report.html")
    assert [file.name for file in folder.iterdir()] == ["report.html"]
    source = (folder / "report.html").read_text(encoding="utf-8")
    return Page(source), source


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str]:
    return page([BRAKED, FROZEN], tmp_path_factory.mktemp("page"))


def test_page_loads_nothing_and_refers_to_itself_alone(rendered: tuple[Page, str]) -> None:
    parsed, source = rendered
    for word in ("http:", "https:", "@import", "fetch(", "import("):
        assert word not in source
    assert not {"link", "iframe", "object", "img"} & {tag for tag, _ in parsed.tags}
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {str(a["href"])[1:] for _, a in parsed.tags if str(a.get("href", "")).startswith("#")}
    named = {a["aria-labelledby"] for _, a in parsed.tags if "aria-labelledby" in a}
    assert links | named | set(re.findall(r"url\(#([^)]+)\)", source)) <= set(ids)
    for _, attributes in parsed.tags:
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)


def test_language_table_holds_every_figure(rendered: tuple[Page, str]) -> None:
    table, notes = rendered[0].table("Every language"), rendered[0].notes_of("Every language")
    groups, heads, *rows, foot = table
    assert groups == ["", "plain", "core frozen", "base"]
    assert len({len(row) for row in (heads, *rows, foot)}) == 1
    found = {row[0]: (row, note) for row, note in zip(table[2:], notes[2:], strict=True)}
    for first, run in ((1, BRAKED), (7, FROZEN)):
        for code, name in (("de", "German (de)"), ("ar", "Arabic (ar)")):
            row, note = found[name]
            delta, verdict, relative, ratio, perplexity, accuracy = row[first : first + 6]
            change, after = run.model.forgetting.languages[code], run.model.figures[code]
            assert number(delta) == pytest.approx(change.delta_nll_per_byte, abs=6e-5)
            ends = [number(end) for end in note[first].split(" to ")]
            assert ends == pytest.approx(change.interval, abs=6e-5)
            assert verdict.split("\xa0")[1] == ("improved" if code == "ar" else "forgotten")
            assert number(relative[:-1]) == pytest.approx(100 * change.relative, abs=6e-3)
            assert number(ratio) == pytest.approx(change.perplexity_ratio, abs=6e-4)
            assert number(perplexity) == pytest.approx(after.perplexity, abs=0.06)
            assert number(accuracy[:-1]) == pytest.approx(100 * after.accuracy, abs=0.06)
        assert number(foot[first]) == pytest.approx(run.model.forgetting.mean, abs=6e-5)
    before = BRAKED.history.base.figures["de"]
    assert number(found["German (de)"][0][-2]) == pytest.approx(before.nll_per_byte, abs=6e-5)
    assert found["Czech (cs)"][0][2] == "within\xa0noise"
    assert found["Chinese (zh)"][1][0] == "target"
    assert rows[0][0] == "Chinese (zh)"
    order = [number(row[1]) for row in rows[1:]]
    assert order == sorted(order, reverse=True)
    assert len(rows) == len(CODES)
    # A reader sorts by full numbers.
    keys = {a["data-value"] for tag, a in rendered[0].tags if tag == "td" and "data-value" in a}
    assert str(FROZEN.model.forgetting.languages["de"].delta_nll_per_byte) in keys


def test_runs_table_says_what_each_model_gained_and_lost(rendered: tuple[Page, str]) -> None:
    rows = rendered[0].table("The runs’ models")[1:]
    for row, run, step in zip(rows, (BRAKED, FROZEN), (20, 60), strict=True):
        change = run.model.forgetting
        assert row[:2] == [run.name, str(step)]
        found = [number(row[place]) for place in (2, 4, 5)]
        assert found == pytest.approx([change.mean, change.worst[1], change.target_gain], abs=6e-5)


def test_brake_region_benchmarks_texts_and_settings(rendered: tuple[Page, str]) -> None:
    parsed, source = rendered
    first = BRAKED.brake.breaches(BRAKED.evaluations)[0]
    assert first.step == 30
    lost, limit = measured(first.value, "relative"), measured(first.limit, "relative")
    breach = parsed.table("limit was exceeded")[1]
    assert breach == ["plain", "30", "German (de)", lost, limit]
    assert any(brake_line(BRAKED) == text for text in parsed.text)
    region = dict(parsed.table("The region")[1:])
    assert region["entries"] == "17,695, 0.43% of all weights"
    assert region["in training"] == REGION.frozen
    assert region["made: languages"] == '["en", "es"]'
    assert region["share of lm_head.weight"] == "31%"
    places = parsed.table("layer’s parameters")
    assert places == [["layer", "mlp.up_proj"], ["0", "2%"], ["9", "12%"], ["10", "25%"]]
    assert parsed.table("Benchmarks")[2] == ["arc", "acc", "5", "0.4000", "0.3800", "+5.00%"]
    assert parsed.table("Benchmarks")[3][-1] == "+5.00%"
    heads, _, spanish, mean = parsed.table("language of their prompt")
    assert heads == ["language", "prompts", "the document", "base", "plain"]
    assert spanish == ["Spanish (es)", "2", "100.0%", "50.0%", "50.0%"]
    assert mean == ["mean of held-out", "", "50.0%", "75.0%", "25.0%"]
    assert all(others in source for others in (">none 1<", ">zh 1<"))
    examples = parsed.table("Examples: what plain says")
    assert examples[1] == ["English (en)", "words", "–", "words", "–"]
    assert parsed.table("runs differ")[1:] == [["region", "–", "core.safetensors"]]
    assert dict(parsed.table("all runs share")[1:]) == {"learning_rate": "0.001", "seed": "0"}
    read = parsed.table("“plain”")
    assert read[1] == ["Arabic (ar)", "6", "5,400", "2,000", "2.70", "–", "12.5%"]
    assert len(read) == 1 + len(CODES)


def test_texts_of_several_bases_stand_in_a_table_each(tmp_path: Path) -> None:
    """As in a report of several folders: other prompts, other languages."""
    same, other = generation(("en", "es")), generation(("es", "sw"), "other words")
    runs = [
        make_run(name, steps=(0, 60), generation=found)
        for name, found in (("plain", same), ("frozen", same), ("elsewhere", other))
    ]
    parsed, source = page(runs, tmp_path)
    assert parsed.table("language of their prompt")[0][2:] == ["the document", "base", "elsewhere"]
    assert source.count("in the language of their prompt</caption>") == 2
    first = generation_tables({"plain": same, "frozen": same, "elsewhere": other})[0]
    titles = ["language", "prompts", "the document", "base", "plain", "frozen"]
    assert [column.title for column in first.columns] == titles
    assert [row[0] for row in parsed.table("what elsewhere says")[1:]] == [
        "Spanish (es)", "Swahili (sw)", "Swahili (sw)"
    ]  # fmt: skip


def test_runs_of_other_languages_bases_and_texts(tmp_path: Path) -> None:
    runs = [
        make_run("plain", CODES, steps=(0, 60), texts=texts(CODES)),
        make_run(
            "other", [*CODES[:3], "sw", "zh"], steps=(0, 60), seed=9, texts=texts(CODES, 1800)
        ),
        make_run("third", CODES, steps=(0, 60), target=None, texts=texts(CODES)),
    ]
    parsed, source = page(runs, tmp_path)
    groups, heads, *rows, foot = parsed.table("Every language")
    assert groups == ["", "plain", "other", "third"]
    assert len({len(row) for row in (heads, *rows, foot)}) == 1
    by_name = {row[0]: row for row in rows}
    assert by_name["Swahili (sw)"][1:10] == ["–"] * 9
    assert by_name["Spanish (es)"][10:19] == ["–"] * 9
    for place, run in ((8, runs[0]), (17, runs[1])):
        before = run.history.base.figures["da"].nll_per_byte
        assert number(by_name["Danish (da)"][place]) == pytest.approx(before, abs=6e-5)
    # Texts stand once for runs that read the same.
    assert parsed.table("“plain”, “third”")[1][3] == "2,000"
    assert parsed.table("texts: “other”")[1][3] == "1,800"
    # A run without a target has no place in the plane; models evaluated once have no course.
    assert any("no single target language in “third”" in text for text in parsed.text)
    assert 'id="plane-wide' not in source
    assert 'id="course-wide' not in source
    assert 'class="panel"' not in source
    assert "step" not in parsed.table("The runs’ models")[0]


def test_a_run_that_was_braked_at_its_first_evaluation_has_a_course(tmp_path: Path) -> None:
    run = make_run("a", steps=(0, 4), brake=Brake({"de": 1e-9}, "roll_back"))
    parsed, source = page([run], tmp_path)
    assert 'id="course-wide' in source
    assert parsed.table("The runs’ models")[1][:3] == ["a", "0", "0.0000"]


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.exhaustive)])
@pytest.mark.filterwarnings("error")
def test_many_languages_and_names_that_are_no_markup(count: int, tmp_path: Path) -> None:
    """Every panel is there, the worst first; the first 24 are open."""
    odd = "<script>alert(1)</script><b>&\"'$x_1$"
    codes = [f"l{number:03}" for number in range(count - 3)] + ["<u>", odd, "中文"]
    run = make_run(
        odd,
        [*codes, "zh"],
        steps=(0, 5, 10),
        settings={"<i>": odd},
        region=replace(REGION, file=odd, made={odd: odd}),
        texts=texts(["<u>"]),
        brake=Brake({odd: 0.1}),
    )
    parsed, source = page([run], tmp_path)
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    assert not {"b", "u"} & {tag for tag, _ in parsed.tags}
    assert "alert(1)</script>" not in source
    assert odd in parsed.text
    losses = {code: run.model.loss(code, "relative").value for code in codes}
    order = sorted(codes, key=lambda code: -losses[code])
    panels = re.findall(r'<div class="panel"><p>(l\d+)</p>', source)
    assert panels == [code for code in order if code.startswith("l")]
    assert f"The other {count - 24} languages" in parsed.text
    labels = [str(a.get("aria-label")) for _, a in parsed.tags]
    assert any(label.startswith(f"{order[0]}: ") for label in labels)
    assert len(parsed.table("Every language")) == 2 + count + 2
    assert len(source) < 20_000 * count


@pytest.mark.exhaustive
def test_same_runs_same_bytes(rendered: tuple[Page, str], tmp_path: Path) -> None:
    assert page(two(), tmp_path)[1] == rendered[1]


def test_the_line_of_a_model_has_its_figures_intervals_and_verdicts() -> None:
    run = make_run("a", ("en", "es", "de", "it", "zh"))
    line, change = model_line(run), run.model.forgetting
    for value in (change.target_gain, change.mean, change.worst[1], change.mean_interval[0]):
        assert f"{value:+.4f}".replace("-", "−") in line
    assert "Of 4 intervals: 2 forgotten, 1 improved, 1 within noise." in line
    assert "No intervals" in model_line(make_run(noise=None))
    assert "gain" not in model_line(make_run(target=None))


def test_the_line_of_a_model_says_what_it_went_back_from_and_its_average() -> None:
    line = model_line(BRAKED)
    assert "step 20:" in line
    assert (
        f"Last step, 60: gain of Chinese {BRAKED.history.last.forgetting.target_gain:+.4f}" in line
    )
    averaged = replace(make_run("a"), average=make_run(factor=0.5).model.forgetting)
    assert f"mean {averaged.average.mean:+.4f}, gain {averaged.average.target_gain:+.4f}." in (
        model_line(averaged)
    )


def test_rehearsal_has_a_picture_where_a_run_rehearses(tmp_path: Path) -> None:
    runs = [make_run("a", rehearsed=[Rehearsed(10, 0.25, 300), Rehearsed(20, 0.046, 9)])]
    parsed, _ = page(runs, tmp_path)
    assert "What became of the base’s own words?" in parsed.text
    assert "when logged last: 0.046 nats per token." in model_line(runs[0])
    assert "own words" not in page([make_run("a")], tmp_path)[0].text


def test_the_line_of_a_brake() -> None:
    assert "No limit was exceeded. Model of step 60." in brake_line(
        make_run(brake=Brake({"worst": 9.0}, "warn"))
    )
    line = brake_line(BRAKED)
    for part in ("German", "mean 50.00%", "roll_back", "First exceeded at step 30"):
        assert part in line
    assert line.endswith("Training ended at step 30. Model of step 20.")


@pytest.mark.parametrize(
    ("value", "measure", "written"),
    [
        (0.03, "relative", "3.00%"),
        (0.03003, "relative", "3.003%"),  # just above a limit of 3%
        (1e-6, "relative", "0.0001%"),
        (0.02, "nats_per_byte", "0.0200 nats per byte"),
        (0.03003, "nats_per_byte", "0.03003 nats per byte"),
        (math.inf, "perplexity", "∞"),
    ],
)
def test_a_loss_is_told_from_a_limit_that_it_is_just_above(value, measure, written) -> None:
    assert measured(value, measure) == written


def test_a_subsample_is_said(tmp_path: Path) -> None:
    run = make_run("a", steps=(0, 1))
    figures = run.history.last.figures
    for code, whole in figures.items():
        figures[code] = replace(whole, nll=whole.nll / 4, bytes=whole.bytes // 4)
    parsed, _ = page([run], tmp_path)
    assert any("25% of its text" in text for text in parsed.text)


@pytest.mark.parametrize(
    ("runs", "complaint"),
    [
        ([], "expected 1 to 14 runs, which a reader can tell apart, got 0"),
        ([make_run(str(n)) for n in range(15)], "got 15; show fewer"),
        ([make_run("a"), make_run("a")], "a name of its own for each run, got 'a' twice"),
        ([make_run("a", steps=(60,))], "and the run 'a' has 1; wait until"),
    ],
)
def test_runs_that_cannot_be_shown(runs: list[Run], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(complaint)):
        render_runs(runs, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
