import copy
import re
from pathlib import Path
from typing import Any

import pytest
from made_runs import BRAKE, CODES, REGION, make_run, texts, two
from parsed_page import Page, number

from freezetrain.errors import UserError
from freezetrain.report.runs_page import render_runs


def page(runs: list[dict[str, Any]], folder: Path) -> tuple[Page, str]:
    render_runs(runs, folder / "report.html")
    assert [file.name for file in folder.iterdir()] == ["report.html"]
    source = (folder / "report.html").read_text(encoding="utf-8")
    return Page(source), source


@pytest.fixture
def rendered(tmp_path: Path) -> tuple[Page, str]:
    return page(two(), tmp_path)


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
    for place, run in enumerate(two()):
        evaluations = run["history"]["evaluations"]
        last = evaluations[3] if run.get("brake") else evaluations[-1]
        for code, name in (("de", "German (de)"), ("ar", "Arabic (ar)")):
            row, note = found[name]
            delta, verdict, relative, ratio, perplexity, accuracy = row[
                1 + 6 * place : 7 + 6 * place
            ]
            change, after = last["forgetting"]["languages"][code], last["figures"][code]
            assert number(delta) == pytest.approx(change["delta_nll_per_byte"], abs=6e-5)
            low, high = note[1 + 6 * place].split(" to ")
            assert [number(low), number(high)] == pytest.approx(change["interval"], abs=6e-5)
            assert verdict.split("\xa0")[1] == ("improved" if code == "ar" else "forgotten")
            assert number(relative[:-1]) == pytest.approx(100 * change["relative"], abs=6e-3)
            assert number(ratio) == pytest.approx(change["perplexity_ratio"], abs=6e-4)
            assert number(perplexity) == pytest.approx(after["perplexity"], abs=0.06)
            assert number(accuracy[:-1]) == pytest.approx(100 * after["accuracy"], abs=0.06)
        assert number(foot[1 + 6 * place]) == pytest.approx(last["forgetting"]["mean"], abs=6e-5)
    before = two()[0]["history"]["evaluations"][0]["figures"]["de"]
    assert number(found["German (de)"][0][-2]) == pytest.approx(before["bits_per_byte"], abs=6e-5)
    assert found["Czech (cs)"][0][2] == "within\xa0noise"
    assert found["Chinese (zh)"][1][0] == "target"
    assert rows[0][0] == "Chinese (zh)"
    order = [number(row[1]) for row in rows[1:]]
    assert order == sorted(order, reverse=True)
    assert len(rows) == len(CODES)


def test_bases_that_differ_stand_beside_their_runs(tmp_path: Path) -> None:
    other = make_run("other", [*CODES[:3], "sw", "zh"], seed=9)
    parsed, _ = page([make_run("plain", CODES), other], tmp_path)
    groups, heads, *rows, foot = parsed.table("Every language")
    assert groups == ["", "plain", "other"]
    assert len({len(row) for row in (heads, *rows, foot)}) == 1
    by_name = {row[0]: row for row in rows}
    assert by_name["Swahili (sw)"][1:10] == ["–"] * 9
    assert by_name["Spanish (es)"][10:] == ["–"] * 9
    for place, run in ((8, make_run("plain", CODES)), (17, other)):
        before = run["history"]["evaluations"][0]["figures"]["da"]["bits_per_byte"]
        assert number(by_name["Danish (da)"][place]) == pytest.approx(before, abs=6e-5)


def test_texts_stand_once_for_runs_that_read_the_same(tmp_path: Path) -> None:
    runs = [make_run(name, CODES) | {"texts": texts(CODES)} for name in "abc"]
    runs[1]["texts"][0]["tokens"] = 1800
    parsed, _ = page(runs, tmp_path)
    assert parsed.table("the runs “a” and “c” read")[1][3] == "2,000"
    assert parsed.table("the run “b” read")[1][3] == "1,800"


def test_a_run_that_was_braked_at_its_first_evaluation_has_a_course(tmp_path: Path) -> None:
    run = make_run("a", CODES, steps=(0, 4)) | {"brake": BRAKE | {"model_step": 0}}
    parsed, source = page([run], tmp_path)
    assert 'id="course-wide' in source
    assert parsed.table("The runs’ models")[1][:3] == ["a", "0", "0.0000"]


def test_sort_keys_are_full_numbers(rendered: tuple[Page, str]) -> None:
    last = two()[1]["history"]["evaluations"][-1]["forgetting"]["languages"]["de"]
    keys = {a["data-value"] for tag, a in rendered[0].tags if tag == "td" and "data-value" in a}
    assert str(last["delta_nll_per_byte"]) in keys


def test_every_panel_is_there_the_worst_first(tmp_path: Path) -> None:
    codes = [f"l{number:02}" for number in range(40)]
    parsed, source = page([make_run("a", [*codes, "zh"])], tmp_path)
    last = make_run("a", [*codes, "zh"])["history"]["evaluations"][-1]["forgetting"]["languages"]
    order = sorted(codes, key=lambda code: -last[code]["delta_nll_per_byte"])
    panels = re.findall(r'<div class="panel"><p>(\w+)</p>', source)
    assert panels == order
    assert "The other 16 languages" in parsed.text
    label = f"{order[0]}: a {last[order[0]]['delta_nll_per_byte']:+.3g} nats per byte"
    assert label in {attributes.get("aria-label") for _, attributes in parsed.tags}


def test_brake_region_benchmarks_texts_and_settings(rendered: tuple[Page, str]) -> None:
    parsed, _ = rendered
    said = " ".join(parsed.text)
    assert "5.00% for the held-out languages on average" in said
    assert "first exceeded at step 40: Spanish had lost 4.12%" in said
    assert "Training ended at step 40. The model is that of step 30." in said
    assert parsed.table("limit was exceeded")[1] == [
        "plain",
        "40",
        "Spanish (es)",
        "4.12%",
        "3.00%",
    ]
    region = dict(parsed.table("The region")[1:])
    assert region["entries"] == "17,695, 0.43% of all weights"
    assert region["in training"] == REGION["frozen"]
    assert region["made: languages"] == '["en", "es"]'
    assert region["share of lm_head.weight"] == "31%"
    places = parsed.table("layer’s parameters")
    assert places == [["layer", "mlp.up_proj"], ["0", "2%"], ["9", "12%"], ["10", "25%"]]
    assert parsed.table("Benchmarks")[2] == ["arc", "acc", "0.4000", "0.3800", "+5.00%"]
    assert parsed.table("Benchmarks")[3][-1] == "+5.00%"
    assert parsed.table("runs differ")[1:] == [["region", "–", "core.safetensors"]]
    assert dict(parsed.table("all runs share")[1:]) == {"learning_rate": "0.001", "seed": "0"}
    read = parsed.table("that the run “plain” read")
    assert read[1] == ["Arabic (ar)", "6", "5,400", "2,000", "2.70", "–", "12.5%"]
    assert len(read) == 1 + len(CODES)


def test_runs_table_says_what_each_model_gained_and_lost(rendered: tuple[Page, str]) -> None:
    for row, run, step in zip(
        rendered[0].table("The runs’ models")[1:], two(), (30, 60), strict=True
    ):
        change = run["history"]["evaluations"][step // 10]["forgetting"]
        assert row[:2] == [run["name"], str(step)]
        found = [number(row[place]) for place in (2, 4, 5)]
        worst = change["worst"]["delta_nll_per_byte"]
        assert found == pytest.approx([change["mean"], worst, change["target_gain"]], abs=6e-5)


def test_without_a_target_the_page_says_why_there_is_no_plane(tmp_path: Path) -> None:
    parsed, source = page([make_run("a", CODES, target=None), make_run("b", CODES)], tmp_path)
    assert any("“a” has no single target language" in text for text in parsed.text)
    assert 'id="plane-wide' not in source
    assert 'id="course-wide' in source


def test_models_that_were_evaluated_once_have_no_courses(tmp_path: Path) -> None:
    runs = [make_run(name, CODES, target=None, steps=(0, 1)) for name in ("a", "b", "c")]
    parsed, source = page(runs, tmp_path)
    assert "step by step" not in source
    assert 'class="panel"' not in source
    assert parsed.table("Every language")[0] == ["", "a", "b", "c", "base"]
    assert parsed.table("The runs’ models")[0] == [
        "model",
        "mean loss of held-out",
        "relative",
        "worst",
    ]


@pytest.mark.filterwarnings("error")
def test_names_are_escaped_in_text_and_plots(tmp_path: Path) -> None:
    odd = "<script>alert(1)</script><b>&\"'$x_1$"
    run = make_run(odd, ["<u>", odd, "中文", "zh"]) | {
        "settings": {"<i>": odd},
        "region": REGION | {"file": odd, "made": {odd: odd}},
        "texts": texts(["<u>"]),
        "brake": BRAKE | {"limits": {odd: 0.1}},
    }
    parsed, source = page([run], tmp_path)
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    assert not {"b", "u"} & {tag for tag, _ in parsed.tags}
    assert "alert(1)</script>" not in source
    assert odd in parsed.text


@pytest.mark.filterwarnings("error")
def test_two_hundred_languages(tmp_path: Path) -> None:
    codes = [f"l{number:03}" for number in range(200)]
    parsed, source = page([make_run("a", [*codes, "zh"], steps=(0, 5, 10))], tmp_path)
    assert len(parsed.table("Every language")) == 2 + 201 + 1
    assert "The other 176 languages" in parsed.text
    assert len(source) < 4_000_000


def test_same_runs_same_bytes_and_nothing_is_changed(tmp_path: Path) -> None:
    runs = two()
    before = copy.deepcopy(runs)
    render_runs(runs, tmp_path / "a.html")
    render_runs(runs, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert runs == before


def test_a_subsample_is_said(tmp_path: Path) -> None:
    run = make_run("a", CODES)
    for evaluation in run["history"]["evaluations"][1:]:
        for figures in evaluation["figures"].values():
            figures["bytes"] //= 4
    parsed, _ = page([run], tmp_path)
    assert any("fixed subsample of 25% of its text" in text for text in parsed.text)


def test_an_average_of_the_weights_is_said(tmp_path: Path) -> None:
    run = make_run("a", CODES) | {"average": {"mean": -0.0123, "target_gain": 0.25}}
    parsed, _ = page([run], tmp_path)
    assert "average of the weights, with which the mean loss of the held-out languages fell by " \
        "0.012, that of the target fell by 0.250" in " ".join(parsed.text)  # fmt: skip


@pytest.mark.parametrize(
    ("runs", "complaint"),
    [
        ([], "expected 1 to 14 runs, which a reader can tell apart, got 0"),
        ([make_run(str(n)) for n in range(15)], "got 15; show fewer"),
        ([make_run("a"), make_run("a")], "a name of its own for each run, got 'a' twice"),
        ([make_run("a", steps=(60,))], "and the run 'a' has 1; wait until"),
    ],
)
def test_runs_that_cannot_be_shown(
    runs: list[dict[str, Any]], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(complaint)):
        render_runs(runs, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
